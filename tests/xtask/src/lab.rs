//! `cargo xtask lab`: emulated machines by hand.

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use pvmm_agent::Frame;
use pvmm_lab::image::GuestFile;
use pvmm_lab::progress::{human, Step};
use pvmm_lab::{sandbox, HostSpec, Lab, PREPARED};

use crate::error::{file, start, Result};
use crate::prepare::{guest_file, Base};

/// What to do with the lab.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Subcommand)]
enum LabCommand {
    /// Boot one host, run a shell command in it, show console and output, and switch it off
    ///
    /// The host has busybox, /bin/pvmmd, pvmm.ko (with kvm.ko and others) in /lib/modules, and a kernel
    /// and an initramfs for guests in /guest.
    Run(RunArguments),
}

#[derive(Args)]
struct RunArguments {
    /// A file to put into the host, as FILE:/PATH/IN/THE/HOST
    #[arg(long = "file", value_name = "FILE:/PATH", value_parser = guest_file)]
    files: Vec<GuestFile>,
    /// QEMU instead of Bochs: faster, without VT-x
    #[arg(long)]
    qemu: bool,
    /// Number of CPUs
    #[arg(long, default_value_t = 1)]
    cpus: u8,
    /// Memory in MB
    #[arg(long, default_value_t = 640)]
    memory: u32,
    /// Boot the debug kernel, which watches itself and the module
    #[arg(long)]
    debug_kernel: bool,
    /// Don't build and include pvmm.ko
    #[arg(long)]
    no_module: bool,
    /// Don't show the console
    #[arg(long)]
    quiet: bool,
    /// Seconds that the command may take
    #[arg(long, default_value_t = 600)]
    limit: u64,
    /// Write what arrives at the host's second serial port to this file
    #[arg(long, value_name = "FILE")]
    com2: Option<PathBuf>,
    /// The shell command
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Runs a lab command.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let LabCommand::Run(arguments) = &arguments.command;
    if sandbox::is_inside() {
        return run_inside(arguments);
    }
    // Inside a test, everything is there already.
    let prepared = match env::var_os(PREPARED) {
        Some(prepared) => PathBuf::from(prepared),
        None => prepare(arguments)?,
    };
    again_inside(&prepared)
}

/// Runs this program once more with the same arguments, in namespaces of its own, where it finds what
/// was prepared.
pub fn again_inside(prepared: &Path) -> Result<ExitCode> {
    let own = env::current_exe().map_err(file("can't find", Path::new("this program")))?;
    let words: Vec<_> = env::args_os().skip(1).collect();
    let status = sandbox::command(&own.into_os_string(), &words)
        .env(PREPARED, prepared)
        .status()
        .map_err(start("setpriv"))?;
    Ok(exit_code(status.code()))
}

fn prepare(arguments: &RunArguments) -> Result<PathBuf> {
    let base = Base::ensure_for(arguments.debug_kernel)?;
    let module = if arguments.no_module {
        None
    } else {
        base.module()?
    };
    Ok(base
        .image(module.as_ref(), arguments.files.clone())?
        .save()?)
}

fn run_inside(arguments: &RunArguments) -> Result<ExitCode> {
    let lab = Lab::new("run")?;
    let spec = if arguments.qemu {
        HostSpec::without_vtx("host")
    } else {
        HostSpec::new("host")
    };
    let spec = spec.cpus(arguments.cpus).memory_mb(arguments.memory);
    let step = Step::begin("booting the host", "1 min");
    let mut host = lab.start(&spec)?;
    let console = (!arguments.quiet).then(|| Follower::start(host.console_log()));
    host.wait_ready(Duration::from_secs(600))?;
    step.done();
    let began = Instant::now();
    let output = host.run_with(
        &["sh", "-c", &arguments.command.join(" ")],
        Duration::from_secs(arguments.limit),
        &mut show,
    );
    if let Some(path) = &arguments.com2 {
        std::fs::write(path, host.com2().received()).map_err(file("can't write", path))?;
    }
    let output = output?;
    eprintln!(
        "    command ended with {} after {}",
        output.code,
        human(began.elapsed())
    );
    host.power_off(Duration::from_secs(120))?;
    drop(console);
    lab.finish();
    Ok(exit_code(Some(output.code)))
}

fn show(frame: &Frame) {
    // Nobody may be reading any more; the exit code still counts.
    let _ = match frame {
        Frame::Stdout(bytes) => io::stdout().write_all(bytes),
        Frame::Stderr(bytes) => io::stderr().write_all(bytes),
        _ => Ok(()),
    };
}

fn exit_code(code: Option<i32>) -> ExitCode {
    match code.map(u8::try_from) {
        Some(Ok(code)) => ExitCode::from(code),
        _ => ExitCode::FAILURE,
    }
}

/// Shows the growing end of a host's console on standard error.
struct Follower {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Follower {
    fn start(path: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut file = None;
            loop {
                let last = stopped.load(Ordering::Relaxed);
                if file.is_none() {
                    file = File::open(&path).ok();
                }
                let mut new = Vec::new();
                if let Some(file) = &mut file {
                    // What can't be read now will be in the log.
                    let _ = file.read_to_end(&mut new);
                }
                let _ = io::stderr().write_all(&new);
                if last {
                    return;
                }
                thread::sleep(Duration::from_millis(100));
            }
        });
        Follower {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It can't panic, and nothing depends on it.
            let _ = thread.join();
        }
    }
}
