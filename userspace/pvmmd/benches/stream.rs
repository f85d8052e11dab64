// SPDX-License-Identifier: GPL-2.0
//! How fast memory moves between two daemons over the loopback network, plain and over TLS, against a bare copy through the
//! same kind of socket. Prints `pvmm-stream NAME MIB_PER_SECOND`, for `cargo xtask bench`.
//!
//! Both daemons are in this process, on a fake hypervisor whose guest owns real memory and writes little.
#![forbid(unsafe_code)]

use pvmm_control::request::{Migrate, Name, Run};
use pvmm_control::{Reply, Request};
use pvmm_migrate::{Security, TargetOptions, Tls, Url};
use pvmm_vmm::boot::bzimage::made_up_image;
use pvmm_vmm::fake::FakeHypervisor;
use pvmm_vmm::host_device::HostDevices;
use pvmm_vmm::IrqChip;
use pvmmd::cert::{self, HostNames};
use pvmmd::daemon::server::MoveListener;
use pvmmd::daemon::{Daemon, Options};
use std::error::Error;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

/// Memory that isn't zero.
const CONTENT: usize = 512 << 20;
/// The guest's memory.
const MEMORY: u64 = 640 << 20;
/// Bytes that a bare copy writes and reads at once.
const PIECE: usize = 256 << 10;
/// Each is measured this often, in turn, so that a change of the machine's speed meets all.
const TIMES: usize = 3;
const MIB: f64 = (1 << 20) as f64;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    // Cargo hands over its own options, and `--test` asks for nothing but to be there.
    if std::env::args().any(|argument| argument == "--test") {
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let content = random(CONTENT);
    std::fs::write(directory.path().join("initrd"), &content)?;
    std::fs::write(
        directory.path().join("kernel"),
        made_up_image(b"code", 1 << 20),
    )?;
    let tls = certificates(directory.path())?;
    let mut best = [("copy", 0.0_f64), ("plain", 0.0), ("tls", 0.0)];
    for _ in 0..TIMES {
        let speeds = [
            copy(&content)?,
            moved(directory.path(), &Security::Insecure)?,
            moved(directory.path(), &tls)?,
        ];
        for ((_, best), speed) in best.iter_mut().zip(speeds) {
            *best = best.max(speed);
        }
    }
    for (name, speed) in best {
        println!("pvmm-stream {name} {speed:.0}");
    }
    Ok(())
}

/// Bytes without zero pages and without pattern.
fn random(bytes: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes / 8).flatten().collect()
}

fn certificates(directory: &Path) -> Result<Security> {
    let ca = directory.join("ca");
    let host = directory.join("host");
    cert::init(&ca, "bench")?;
    let names = HostNames {
        host: "localhost".into(),
        addresses: vec!["127.0.0.1".parse()?],
        ..HostNames::default()
    };
    cert::issue(&names, &ca, &host)?;
    Ok(Security::Everywhere(Tls::new(host)))
}

/// MiB per second of a copy from memory to memory through a socket.
fn copy(content: &[u8]) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    let mut copied = vec![0; content.len()];
    let begin = Instant::now();
    thread::scope(|scope| -> Result<()> {
        let reader = scope.spawn(|| far.read_exact(&mut copied));
        for piece in content.chunks(PIECE) {
            near.write_all(piece)?;
        }
        reader.join().map_err(|_| "the reader panicked")??;
        Ok(())
    })?;
    let seconds = begin.elapsed().as_secs_f64();
    if copied != content {
        return Err("the copy differs".into());
    }
    Ok(content.len() as f64 / MIB / seconds)
}

fn daemon(security: &Security) -> Result<(Arc<Daemon>, Url)> {
    let daemon = Daemon::new(
        Arc::new(FakeHypervisor::default()),
        HostDevices::none(),
        Options {
            security: security.clone(),
            ..Options::default()
        },
    );
    let url = MoveListener::bind(&"tcp:127.0.0.1:0".parse()?, security)?
        .serve(&daemon, Arc::new(TargetOptions::default()))?;
    Ok((daemon, url))
}

/// MiB of memory per second that a move takes to the peer, from its first page to its end.
fn moved(directory: &Path, security: &Security) -> Result<f64> {
    let (here, _) = daemon(security)?;
    let (there, url) = daemon(security)?;
    let name = "guest".to_owned();
    let mut nobody = |_| Ok(());
    here.answer(
        Request::Run(Box::new(Run {
            name: name.clone(),
            kernel: directory.join("kernel"),
            initrd: Some(directory.join("initrd")),
            cmdline: String::new(),
            memory: MEMORY,
            irqchip: IrqChip::Apic,
            devices: Vec::new(),
        })),
        &mut nobody,
    )?;
    let moving = Migrate {
        name: name.clone(),
        url: url.to_string(),
        mode: None,
        downtime_limit: None,
        max_bandwidth: None,
        timeout: None,
        timeout_action: None,
    };
    let Reply::Job(statistics) = here.answer(Request::Migrate(Box::new(moving)), &mut nobody)?
    else {
        return Err("a move ends with its statistics".into());
    };
    there.answer(Request::Stop(Name { name }), &mut nobody)?;
    let milliseconds = statistics.total_time.saturating_sub(statistics.setup_time);
    if statistics.ram.transferred < CONTENT as u64 || milliseconds == 0 {
        return Err(format!("not a move of all memory: {statistics:?}").into());
    }
    Ok(statistics.ram.transferred as f64 / MIB / (milliseconds as f64 / 1000.0))
}
