// SPDX-License-Identifier: GPL-2.0
//! The command line. Long options are virsh's where it has them.

use clap::{Args, Parser, Subcommand, ValueEnum};
use pvmm_control::{size, DEFAULT_SOCKET};
use pvmm_migrate::description::validate_name;
use pvmm_migrate::tls::DEFAULT_DIRECTORY;
use pvmm_migrate::{Mode, TimeoutAction, Url};
use pvmm_vmm::{confine, DeviceSpec, IrqChip};
use std::net::IpAddr;
use std::path::PathBuf;

/// A virtual machine monitor whose guests drive real devices and can still be moved while they run.
#[derive(Debug, Parser)]
#[command(name = "pvmmd", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// The daemon's control socket.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed (a guest that was to be moved still runs here, unless the message says otherwise); 2 wrong \
usage; 3 cancelled; 4 refused before anything happened.
The daemon's log goes to standard error; RUST_LOG selects its detail (error, warn, info, debug, trace).";

const INTERRUPT: &str = "\
^C (SIGINT) cancels the move and waits until the guest goes on here; a second ^C does not wait. The move belongs to the \
daemon: it goes on if this command ends in another way, e.g. because its terminal is closed; `pvmmd job-info` shows it, \
`pvmmd migrate-cancel` cancels it.";

const DEVICES: &str = "\
The guest goes on: registers are shown that can be read without a side effect, beside the accesses that the recorder \
keeps because they cannot be read back. FROM says which: log (oldest first), read, model (what no register shows), user (the \
device lives in pvmmd).";

const TRACE: &str = "\
Only accesses that exit to the monitor are seen: of a passed-through device those that must be remembered (of a UART FCR \
and LCR, and the divisor latch while DLAB is set; none with record=off), of the interrupt controllers and the timer all. `+` \
marks what the recorder keeps; LOG is how much it keeps then. Devices in pvmmd (com1, rtc) can't be traced. One device of a \
guest can be traced at a time; ^C ends it.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground.
    Serve(Serve),
    /// Boot a guest.
    Run(Run),
    /// List the guests.
    List(Output),
    /// Show a guest.
    Info(GuestOutput),
    /// Stop a guest's vCPUs and its time.
    Pause(Guest),
    /// Let a paused guest go on.
    Resume(Guest),
    /// End a guest.
    Stop(Guest),
    /// Connect to a guest's console; ^] leaves it.
    Console(Console),
    /// Move a running guest to a peer.
    #[command(after_help = INTERRUPT)]
    Migrate(Migrate),
    /// Give a move up; the guest goes on here.
    MigrateCancel(Guest),
    /// Decide what becomes of a guest whose move was interrupted at its very end. Without an option, ask the peer again.
    MigrateRecover(MigrateRecover),
    /// Show how a guest's move stands, or how the last one ended.
    JobInfo(GuestOutput),
    /// Make the certificates with which the hosts of a fleet know each other.
    #[command(subcommand)]
    Cert(Cert),
    /// Show a guest's devices, what state they are in and where they are.
    #[command(after_help = DEVICES)]
    Devices(GuestOutput),
    /// Show what a guest does to a device, while it does it.
    #[command(after_help = TRACE)]
    Trace(Trace),
    /// Show the kinds of devices that can be given to a guest, and their options.
    DeviceKinds(Output),
    /// Look at this host.
    #[command(subcommand)]
    Host(Host),
    /// Show what the module and this host can do.
    Capabilities(Output),
    /// Show the versions of daemon and module.
    Version(Output),
}

/// The commands about this host, which need no daemon.
#[derive(Debug, Subcommand)]
pub enum Host {
    /// Show the devices that could be given to a guest: who has each now, and how it gets free. Run it as root, who alone sees
    /// which driver has which ports. Nothing is touched; what neither firmware nor a driver names is not shown.
    Devices(Output),
}

/// Options of commands about one guest.
#[derive(Debug, Args)]
pub struct Guest {
    /// The guest's name.
    #[arg(value_parser = guest_name)]
    pub name: String,
}

/// Options of commands that print.
#[derive(Debug, Args)]
pub struct Output {
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of commands that print something about one guest.
#[derive(Debug, Args)]
pub struct GuestOutput {
    /// The guest's name.
    #[arg(value_parser = guest_name)]
    pub name: String,
    /// Print JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `trace`.
#[derive(Debug, Args)]
pub struct Trace {
    /// The guest's name.
    #[arg(value_parser = guest_name)]
    pub name: String,
    /// The device, by its name in `pvmmd devices`: pic, pit, com2, ...
    #[arg(long, value_name = "DEVICE")]
    pub device: String,
    /// Print an access as a line of JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Take guests from peers at this address: tcp:HOST:PORT or unix:PATH. Can be repeated. Over TCP peers need a certificate
    /// (see --tls-dir), except at an address of this host alone: localhost, 127.0.0.1, [::1].
    #[arg(long, value_name = "URL")]
    pub listen: Vec<Url>,
    /// Certificates for moves to and from here, with QEMU's names (ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem,
    /// client-key.pem); `pvmmd cert` makes them. When given, localhost needs them too. Default: /etc/pki/pvmm.
    #[arg(long, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Take guests only from peers whose certificate has this name (its common name or a DNS name). Can be repeated. Default:
    /// from every peer whose certificate was signed by the CA.
    #[arg(long, value_name = "NAME")]
    pub allow_peer: Vec<String>,
    /// Move guests to and from here without TLS: whoever reaches the network can read and change them, and send some. For a
    /// network that only trusted hosts reach.
    #[arg(long, conflicts_with_all = ["tls_dir", "allow_peer"])]
    pub insecure: bool,
    /// Let incoming guests use this device, e.g. serial,port=0x2f8,irq=3[,host-port=0x3e8][,host-irq=4] or
    /// parallel,port=0x378,irq=7; see `pvmmd device-kinds`. Can be repeated.
    #[arg(long, value_name = "DEVICE", value_parser = granted)]
    pub grant: Vec<DeviceSpec>,
    /// Memory that all guests together may have. Default: what the host has free when a guest comes.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub max_memory: Option<u64>,
    /// Write what each guest prints to DIR/NAME.log.
    #[arg(long, value_name = "DIR")]
    pub console_log: Option<PathBuf>,
    /// Ask a peer for so many seconds whether it runs a guest when its answer to the commit got lost; then the guest is in
    /// doubt and waits for `migrate-recover`. Default: 60.
    #[arg(long, value_name = "S")]
    pub recover_limit: Option<u64>,
    /// A link that carries nothing for so many seconds counts as lost, and the move fails. Default: 30.
    // The kernel gives up a TCP connection after 45 s, with a message that says less.
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u64).range(1..=40))]
    pub stall_limit: Option<u64>,
    /// Give the control socket to this group, whose members can then do with guests what root can. Default: root alone.
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// The control socket's permissions, in octal. Default: 0600, or 0660 with --socket-group.
    #[arg(long, value_name = "MODE", value_parser = socket_mode)]
    pub socket_mode: Option<u32>,
    /// What to do about a system call that the daemon does not need: `enforce` lets it fail and names it in the log, `log` lets it
    /// work and has the kernel name it in its log, `off` lets it work.
    #[arg(long, value_enum, value_name = "WHAT", default_value_t)]
    pub seccomp: Seccomp,
}

/// See [`confine::Seccomp`].
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Seccomp {
    /// It fails.
    #[default]
    Enforce,
    /// It works, and the kernel's log names it.
    Log,
    /// It works.
    Off,
}

impl From<Seccomp> for confine::Seccomp {
    fn from(seccomp: Seccomp) -> Self {
        match seccomp {
            Seccomp::Enforce => Self::Enforce,
            Seccomp::Log => Self::Log,
            Seccomp::Off => Self::Off,
        }
    }
}

/// The commands about certificates.
#[derive(Debug, Subcommand)]
pub enum Cert {
    /// Make the CA of a fleet, once: ca-cert.pem and ca-key.pem. Whoever has the key can let hosts in.
    Init(CertInit),
    /// Make a host's certificate, to be carried to that host's --tls-dir. Needs the CA's key.
    Issue(CertIssue),
    /// Show the certificates of a directory, and whether the daemon could use them.
    Show(CertShow),
}

/// Options of `cert init`.
#[derive(Debug, Args)]
pub struct CertInit {
    /// Where the CA is made.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIRECTORY)]
    pub tls_dir: PathBuf,
    /// The CA's common name.
    #[arg(long, value_name = "CN", default_value = "pvmm CA", value_parser = common_name)]
    pub name: String,
}

/// Options of `cert issue`.
#[derive(Debug, Args)]
pub struct CertIssue {
    /// The host: the name or address with which peers dial it, as in `pvmmd migrate GUEST tcp:HOST:PORT`.
    #[arg(value_parser = common_name)]
    pub host: String,
    /// Where the CA is.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIRECTORY)]
    pub tls_dir: PathBuf,
    /// Where the host's files are written. Default: a directory HOST in the CA's.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// An IP address with which peers dial the host. Can be repeated.
    #[arg(long, value_name = "IP")]
    pub address: Vec<IpAddr>,
    /// Another DNS name with which peers dial the host. Can be repeated.
    #[arg(long, value_name = "NAME")]
    pub dns: Vec<String>,
}

/// Options of `cert show`.
#[derive(Debug, Args)]
pub struct CertShow {
    /// Where the certificates are.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIRECTORY)]
    pub tls_dir: PathBuf,
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Name of the new guest: letters, digits, '-', '_' and '.'.
    #[arg(long, value_parser = guest_name)]
    pub name: String,
    /// Kernel: an unmodified bzImage, such as /boot/vmlinuz-VERSION, or the same unpacked (vmlinux).
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk.
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    pub cmdline: String,
    /// Memory, e.g. 128M.
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub memory: u64,
    /// Interrupt controllers: apic (with ACPI) or pic (the 8259 pair alone, no ACPI).
    #[arg(long, value_name = "KIND", value_parser = irqchip, default_value = "apic")]
    pub irqchip: IrqChip,
    /// Give the guest a device of this host, e.g. serial,port=0x2f8,irq=3[,host-port=0x3e8][,host-irq=4] or
    /// parallel,port=0x378,irq=7; `pvmmd device-kinds` shows the kinds, `pvmmd host devices` what there is. With ,record=off
    /// nothing that the guest does to it costs an exit, and the guest can't be moved. Can be repeated.
    #[arg(long = "device", value_name = "DEVICE")]
    pub devices: Vec<DeviceSpec>,
    /// Connect to the console at once; ^] leaves it.
    #[arg(long)]
    pub console: bool,
}

/// Options of `console`.
#[derive(Debug, Args)]
pub struct Console {
    /// The guest's name.
    #[arg(value_parser = guest_name)]
    pub name: String,
    /// Leave out what was printed before.
    #[arg(long)]
    pub no_backlog: bool,
}

/// Options of `migrate`.
#[derive(Debug, Args)]
pub struct Migrate {
    /// The guest's name.
    #[arg(value_parser = guest_name)]
    pub name: String,
    /// Where to: tcp:HOST:PORT or unix:PATH, an address at which a peer's `pvmmd serve --listen` waits. The peer's certificate
    /// must be for HOST. It is this host's daemon that connects, so its `--tls-dir` or `--insecure` counts.
    pub url: Url,
    /// When the guest stops: precopy (after its memory is copied, briefly) or stopcopy (first).
    #[arg(long, value_parser = mode, default_value = "precopy")]
    pub mode: Mode,
    /// How long the guest may be paused, in milliseconds. Default: 300.
    #[arg(long, value_name = "MS")]
    pub downtime_limit: Option<u64>,
    /// Use at most this many MiB per second while the guest runs.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub bandwidth: Option<u64>,
    /// Seconds until the guest must have been paused. Default: 300, or 150 per GiB of memory if that is longer.
    #[arg(long, value_name = "S")]
    pub timeout: Option<u64>,
    /// What happens then: cancel (the guest goes on here), suspend (it is paused and the move finishes) or ignore.
    #[arg(long, value_name = "ACTION", value_parser = timeout_action, default_value = "cancel")]
    pub timeout_action: TimeoutAction,
    /// Move nothing: say whether the peer would take the guest, device by device, with what stands against it and what to do,
    /// and how long the move and the pause would take. Takes about a second; the guest runs on.
    #[arg(long)]
    pub dry_run: bool,
    /// Print the progress as lines of JSON, for programs.
    #[arg(long)]
    pub json: bool,
}

/// Options of `migrate-recover`.
#[derive(Debug, Args)]
pub struct MigrateRecover {
    /// The guest's name.
    #[arg(value_parser = guest_name)]
    pub name: String,
    /// The peer certainly does not run the guest: let it go on here.
    #[arg(long, conflicts_with = "discard")]
    pub resume_here: bool,
    /// The peer runs the guest: discard it here.
    #[arg(long)]
    pub discard: bool,
}

/// X.520 gives a common name 64 characters.
fn common_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.chars().count() > 64 || text.chars().any(char::is_control) {
        return Err("a name has 1 to 64 characters, none of them a control character".into());
    }
    Ok(text.to_owned())
}

fn guest_name(text: &str) -> Result<String, String> {
    validate_name("guest name", text)?;
    Ok(text.to_owned())
}

fn socket_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!(
            "\"{text}\" is not a mode; give permissions in octal, such as 0660"
        )),
    }
}

fn irqchip(text: &str) -> Result<IrqChip, String> {
    match text {
        "apic" => Ok(IrqChip::Apic),
        "pic" => Ok(IrqChip::Pic),
        _ => Err(format!("\"{text}\" is neither apic nor pic")),
    }
}

fn granted(text: &str) -> Result<DeviceSpec, String> {
    let spec: DeviceSpec = text
        .parse()
        .map_err(|e: pvmm_vmm::SpecError| e.to_string())?;
    match spec.recorded {
        true => Ok(spec),
        false => Err(
            "the device of a guest that may arrive is always recorded; leave out record=off".into(),
        ),
    }
}

fn mode(text: &str) -> Result<Mode, String> {
    text.parse()
}

fn timeout_action(text: &str) -> Result<TimeoutAction, String> {
    text.parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("pvmmd").chain(line.split_whitespace()))
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_documented_form_is_understood() {
        for line in [
            "serve",
            "serve --socket /tmp/s --listen tcp:0.0.0.0:7000 --listen unix:/tmp/m --grant serial,port=0x2f8,irq=3 --max-memory 2G",
            "serve --listen tcp:0.0.0.0:7000 --tls-dir /tls --allow-peer one --allow-peer two.example",
            "serve --listen tcp:0.0.0.0:7000 --insecure",
            "cert init",
            "cert init --tls-dir /ca --name fleet",
            "cert issue one",
            "cert issue one --tls-dir /ca --out /tls --address 192.0.2.1 --address 2001:db8::1 --dns one.example",
            "cert show --tls-dir /tls",
            "serve --socket-group pvmm --socket-mode 0660 --stall-limit 10",
            "run --name a --kernel k --memory 128M",
            "run --name a --kernel k --initrd i --cmdline quiet --memory 1G --irqchip pic --device serial,port=0x2f8,irq=3,backend=physical --console",
            "list",
            "list --json",
            "info a --json",
            "pause a",
            "resume a",
            "stop a",
            "console a",
            "migrate a tcp:host:7000",
            "migrate a tcp:[::1]:7000 --mode stopcopy --downtime-limit 100 --bandwidth 50 --timeout 60 --timeout-action suspend --json",
            "migrate-cancel a",
            "migrate-recover a --discard",
            "job-info a --json",
            "devices a",
            "devices a --json",
            "trace a --device com2 --json",
            "capabilities --json",
            "device-kinds",
            "device-kinds --json",
            "host devices",
            "host devices --json",
            "serve --grant parallel,port=0x378,irq=7",
            "version",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn a_wrong_value_is_named_with_its_option_and_what_would_be_right() {
        for (line, parts) in [
            (
                "run --name a --kernel k --memory 12X",
                &["--memory", "12X", "128M"][..],
            ),
            (
                "run --name a/b --kernel k --memory 1G",
                &["--name", "a/b", "letters, digits"],
            ),
            (
                "run --name a --kernel k --memory 1G --irqchip both",
                &["--irqchip", "both", "neither apic nor pic"],
            ),
            (
                "run --name a --kernel k --memory 1G --device serial,port=9",
                &["--device", "\"9\"", "0x2f8"],
            ),
            ("run --name a --memory 1G", &["--kernel"]),
            (
                "serve --listen 1.2.3.4:7000",
                &["--listen", "tcp:HOST:PORT"],
            ),
            (
                "serve --insecure --tls-dir /tls",
                &["--insecure", "--tls-dir"],
            ),
            (
                "serve --insecure --allow-peer one",
                &["--insecure", "--allow-peer"],
            ),
            ("cert issue", &["<HOST>"]),
            ("cert issue a --address b", &["--address"]),
            ("serve --socket-mode 9", &["--socket-mode", "\"9\"", "0660"]),
            ("serve --socket-mode 7777", &["--socket-mode", "octal"]),
            ("serve --stall-limit 0", &["--stall-limit", "1..=40"]),
            ("serve --grant nic", &["--grant", "nic", "serial"]),
            (
                "serve --grant serial,port=0x2f8,irq=3,record=off",
                &["--grant", "arrive", "record=off"],
            ),
            ("migrate a host", &["tcp:HOST:PORT"]),
            (
                "migrate a tcp:h:1 --mode warp",
                &["--mode", "warp", "precopy"],
            ),
            ("migrate a tcp:h:1 --bandwidth 0", &["--bandwidth", "0"]),
            (
                "migrate a tcp:h:1 --timeout-action wait",
                &["--timeout-action", "suspend"],
            ),
            (
                "migrate-recover a --discard --resume-here",
                &["--discard", "--resume-here"],
            ),
            ("info ..", &["letters, digits"]),
            ("trace a", &["--device"]),
        ] {
            let error = parse(line).map(|_| ()).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
            let text = error.to_string();
            for part in parts {
                assert!(text.contains(part), "{line}: {text} lacks {part}");
            }
        }
    }
}
