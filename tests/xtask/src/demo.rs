//! `cargo xtask demo`: a Linux guest moves between two emulated VT-x machines while it works.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use pvmm_agent::Frame;
use pvmm_lab::progress::Step;
use pvmm_lab::{daemon, sandbox, Host, HostSpec, Lab, Wire, PREPARED};

use crate::error::{Error, Result};
use crate::lab::again_inside;
use crate::prepare::{Base, GUEST_INITRD, GUEST_KERNEL};

/// How the demonstration goes.
#[derive(Args)]
pub struct Arguments {
    /// The guest's memory
    #[arg(long, value_name = "SIZE", default_value = "80M")]
    memory: String,
    /// How busily the guest rewrites its memory: idle, slow or fast
    #[arg(long, value_name = "LOAD", default_value = "idle")]
    load: String,
}

/// Name of the guest.
const GUEST: &str = "traveller";
/// Where the daemons look for their certificates.
const TLS: &str = "/etc/pki/pvmm";
/// The emulated machines execute some 50 million instructions a second and send 2 MB in that time, so the default limit
/// of 300 ms would leave room for neither.
const DOWNTIME_LIMIT_MS: &str = "3000";
/// The longest gap in its clocks that the guest accepts: the downtime limit, and what an emulated link may add to it.
const GAP_MS: &str = "15000";
/// How long a step may take on a slow machine.
const LIMIT: Duration = Duration::from_secs(900);

/// Shows it.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if sandbox::is_inside() {
        show(arguments)?;
        return Ok(ExitCode::SUCCESS);
    }
    let base = Base::ensure()?;
    let module = base.module()?.ok_or_else(|| {
        Error::Usage("there is no Kbuild file in the checkout, so no module to show".to_owned())
    })?;
    let prepared = match std::env::var_os(PREPARED) {
        Some(prepared) => prepared.into(),
        None => base.image(Some(&module), Vec::new())?.save()?,
    };
    again_inside(&prepared)
}

fn show(arguments: &Arguments) -> Result<()> {
    let lab = Lab::new("demo")?;
    let step = Step::begin("booting two machines with VT-x (emulated by Bochs)", "30 s");
    let (mut one, mut other) = lab.boot_two(&HostSpec::new("one"), &HostSpec::new("two"))?;
    step.done();

    let step = Step::begin("making their certificates on the first machine", "5 s");
    certify(&mut one, &mut other)?;
    step.done();

    let step = Step::begin("loading pvmm.ko and starting pvmmd on both", "5 s");
    let target = daemon::url(&other);
    for host in [&mut one, &mut other] {
        daemon::load_module(host)?;
    }
    daemon::serve(&mut one, "")?;
    daemon::serve(&mut other, &format!("--listen {target}"))?;
    step.done();

    let step = Step::begin("starting a Linux guest on the first machine", "90 s");
    let command_line = format!(
        "console=ttyS0 quiet nokaslr cryptomgr.notests pvmm.gap_ms={GAP_MS} pvmm.load={}",
        arguments.load
    );
    let run = format!(
        "pvmmd run --name {GUEST} --kernel {GUEST_KERNEL} --initrd {GUEST_INITRD} --memory {} \
         --cmdline '{command_line}'",
        arguments.memory
    );
    one.sh(&run)?;
    daemon::wait_for(&mut one, GUEST, "pvmm-guest READY", 1, LIMIT)?;
    daemon::wait_for(&mut one, GUEST, "pvmm-guest OK", 2, LIMIT)?;
    step.done();
    last_line(&mut one, "the guest says, on the first machine")?;

    let step = Step::begin("moving it to the second machine while it works", "30 s");
    let words = [
        "pvmmd",
        "migrate",
        GUEST,
        &target,
        "--downtime-limit",
        DOWNTIME_LIMIT_MS,
    ];
    let out = one.run_with(&words, LIMIT, &mut |frame| {
        if let Frame::Stdout(bytes) | Frame::Stderr(bytes) = frame {
            eprint!("{}", String::from_utf8_lossy(bytes));
        }
    })?;
    if out.code != 0 {
        return Err(Error::Usage(format!(
            "pvmmd migrate ended with {}; the logs are in {}",
            out.code,
            lab.folder().display()
        )));
    }
    step.done();

    let step = Step::begin("the guest goes on, on the second machine", "5 s");
    daemon::wait_for(&mut other, GUEST, "pvmm-guest OK", 2, LIMIT)?;
    step.done();
    last_line(&mut other, "the guest says, on the second machine")?;
    for host in [&mut one, &mut other] {
        println!("\n{}: pvmmd list", host.name().to_owned());
        print!("{}", host.sh("pvmmd list")?);
    }
    println!("\n{}", out.stdout.trim_end());
    lab.finish();
    Ok(())
}

/// Makes a CA and both machines' certificates on the first, and carries the second's to it.
fn certify(one: &mut Host, other: &mut Host) -> Result<()> {
    let addresses = [&*one, &*other].map(|host| host.address(Wire::Migration));
    one.sh(&format!(
        "pvmmd cert init && pvmmd cert issue one --address {} --out {TLS} && \
         pvmmd cert issue two --address {} --out {TLS}/two",
        addresses[0], addresses[1]
    ))?;
    let files = one.sh(&format!("ls {TLS}/two"))?;
    for file in files.split_whitespace() {
        let content = one.get(&format!("{TLS}/two/{file}"))?;
        other.put(&format!("{TLS}/{file}"), 0o600, &content)?;
    }
    Ok(())
}

fn last_line(host: &mut Host, what: &str) -> Result<()> {
    let console = daemon::console(host, GUEST)?;
    let line = console.lines().rfind(|line| line.contains("pvmm-guest"));
    println!("    {what}: {}", line.unwrap_or("(nothing)").trim_end());
    Ok(())
}
