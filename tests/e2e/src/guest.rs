//! A guest on emulated hosts: daemons, the verifier in the guest, and what it says on its consoles.

use std::error::Error;
use std::time::Duration;

use pvmm_lab::daemon::{load_module, url};
use pvmm_lab::{kernel_log, Host};

pub use pvmm_lab::daemon::console;

/// How long a step may take on a slow machine.
pub const LIMIT: Duration = Duration::from_secs(900);
/// The device that the tests pass through: the host's second serial port.
pub const COM2: &str = "serial,port=0x2f8,irq=3";

/// How often the guest does things: less than by default, as an emulated core has no more than some 20 million
/// instructions a second for a guest and its host.
const PACE: &str = "pvmm.heartbeat_ms=250 pvmm.tick_ms=100";

/// Command line of the papers' machine: 8259 pair and 8254 only.
pub const PIC: &str = "noapic nolapic acpi=off";
/// Command line of a machine with local APIC, I/O APIC and ACPI.
pub const APIC: &str = "";

/// Loads the module and starts the daemon, which takes guests and may give them the second serial port. Returns the
/// daemon's process id.
///
/// # Errors
/// Those of the host; the daemon's log if it doesn't answer.
pub fn serve(host: &mut Host) -> Result<u32, Box<dyn Error>> {
    load_module(host)?;
    daemon(host, &format!("--grant {COM2}"))
}

/// Starts a daemon that takes guests, with these options and without TLS: the wire between the hosts is theirs alone.
/// Returns its process id.
///
/// # Errors
/// Those of the host; the daemon's log if it doesn't answer.
pub fn daemon(host: &mut Host, options: &str) -> Result<u32, Box<dyn Error>> {
    daemon_with(host, &format!("--insecure {options}"))
}

/// As [`daemon`], with these options alone.
///
/// # Errors
/// Those of the host; the daemon's log if it doesn't answer.
pub fn daemon_with(host: &mut Host, options: &str) -> Result<u32, Box<dyn Error>> {
    let options = format!("--listen {} {options}", url(host));
    Ok(pvmm_lab::daemon::serve(host, &options)?)
}

/// Starts the verifier's guest, with these words on its kernel's command line beside the usual ones, and waits until it
/// has verified itself twice.
///
/// # Errors
/// As [`wait_for`].
pub fn start(
    host: &mut Host,
    name: &str,
    machine: &str,
    parameters: &str,
    options: &str,
) -> Result<(), Box<dyn Error>> {
    let irqchip = if machine == PIC { "pic" } else { "apic" };
    host.sh(&format!(
        "pvmmd run --name {name} --kernel /guest/vmlinux --initrd /guest/initrd --memory 80M --irqchip {irqchip} \
         --cmdline 'console=ttyS0 quiet nokaslr cryptomgr.notests mitigations=off {machine} {PACE} {parameters}' {options}"
    ))?;
    wait_for(host, name, "pvmm-guest OK", 2)?;
    Ok(())
}

/// Waits until the guest's console on this host has at least `count` lines with `text`, and returns it. A line in which the
/// verifier reports a failure ends the test.
///
/// # Errors
/// What the guest has reported, or what it, its daemon and the host's kernel have said if the lines don't come.
pub fn wait_for(
    host: &mut Host,
    guest: &str,
    text: &str,
    count: usize,
) -> Result<String, Box<dyn Error>> {
    Ok(pvmm_lab::daemon::wait_for(host, guest, text, count, LIMIT)?)
}

/// Moves a guest; returns what `pvmmd migrate` printed.
///
/// # Errors
/// What it printed if the move failed.
pub fn migrate(
    from: &mut Host,
    to: &Host,
    guest: &str,
    options: &str,
) -> Result<String, Box<dyn Error>> {
    let line = format!("pvmmd migrate {guest} {} {options}", url(to));
    let out = from.run_with(&["sh", "-c", &line], LIMIT, &mut |_| ())?;
    if out.code == 0 {
        return Ok(out.stdout);
    }
    Err(format!(
        "{line} ended with {}:\n{}{}",
        out.code, out.stdout, out.stderr
    )
    .into())
}

/// A move that goes on while the test does something to it.
pub struct Departure {
    guest: String,
    pid: u32,
}

/// Where a move in the background writes what it says.
const DEPARTURE_LOG: &str = "/tmp/migrate.log";

impl Departure {
    /// Begins to move a guest.
    ///
    /// # Errors
    /// Those of the host.
    pub fn begin(
        from: &mut Host,
        to: &Host,
        guest: &str,
        options: &str,
    ) -> Result<Self, Box<dyn Error>> {
        let line = format!("exec pvmmd migrate {guest} {} {options}", url(to));
        Ok(Departure {
            guest: guest.to_owned(),
            pid: from.spawn(&["sh", "-c", &line], DEPARTURE_LOG)?,
        })
    }

    /// Waits until the source is in this phase.
    ///
    /// # Errors
    /// How the move stands if that doesn't happen.
    pub fn wait_for_phase(&self, from: &mut Host, phase: &str) -> Result<(), Box<dyn Error>> {
        let guest = &self.guest;
        from.sh(&format!(
            "for i in $(seq 600); do pvmmd job-info {guest} | grep -q 'phase: *{phase}' && exit 0; usleep 50000; done; \
             pvmmd job-info {guest}; cat {DEPARTURE_LOG}; exit 1"
        ))?;
        Ok(())
    }

    /// Waits for the end of the move, which must be a failure; returns what was said.
    ///
    /// # Errors
    /// It has succeeded.
    pub fn fails(self, from: &mut Host) -> Result<String, Box<dyn Error>> {
        let code = from.wait(self.pid, LIMIT)?;
        let said = from.sh(&format!("cat {DEPARTURE_LOG}"))?;
        if code == 0 {
            return Err(format!("a move that should have failed has succeeded:\n{said}").into());
        }
        Ok(said)
    }
}

/// What a guest's serial ports have said on all hosts where it was, in order.
///
/// A host's part begins where its logs ended before the guest arrived and ends where they end when it has left, so a line
/// that a move has cut in two is whole again here, and one that both hosts have printed is there twice.
pub struct Trail {
    guest: String,
    com1: String,
    com2: String,
    begin: (usize, usize),
}

impl Trail {
    /// A trail that begins on `host`, where the guest isn't yet or has just been started.
    ///
    /// # Errors
    /// Those of the host.
    pub fn begin(host: &mut Host, guest: &str) -> Result<Self, Box<dyn Error>> {
        Ok(Trail {
            guest: guest.to_owned(),
            com1: String::new(),
            com2: String::new(),
            begin: lengths(host, guest)?,
        })
    }

    /// Moves the guest; returns what `pvmmd migrate` printed.
    ///
    /// # Errors
    /// As [`migrate`].
    pub fn migrate(
        &mut self,
        from: &mut Host,
        to: &mut Host,
        options: &str,
    ) -> Result<String, Box<dyn Error>> {
        let begin = lengths(to, &self.guest)?;
        let report = migrate(from, to, &self.guest, options)?;
        self.add(from)?;
        self.begin = begin;
        Ok(report)
    }

    /// Adds what the guest has said on `host`, where it is or has been last.
    fn add(&mut self, host: &mut Host) -> Result<(), Box<dyn Error>> {
        let com1 = console(host, &self.guest)?;
        self.com1 += com1.get(self.begin.0..).unwrap_or_default();
        let com2 = host.com2().received();
        self.com2 += &String::from_utf8_lossy(com2.get(self.begin.1..).unwrap_or_default());
        Ok(())
    }

    /// What COM1 and COM2 have said up to now, when the guest is on `host`.
    ///
    /// # Errors
    /// Those of the host.
    pub fn end(mut self, host: &mut Host) -> Result<(String, String), Box<dyn Error>> {
        self.add(host)?;
        Ok((self.com1, self.com2))
    }
}

/// How long a host's logs of the guest's two ports are.
fn lengths(host: &mut Host, guest: &str) -> Result<(usize, usize), Box<dyn Error>> {
    Ok((console(host, guest)?.len(), host.com2().received().len()))
}

/// Checks that the kernels of hosts have noticed nothing, and that their daemons have done nothing that they had said they
/// wouldn't need to do.
///
/// # Errors
/// The log of the first that has.
pub fn check_logs(hosts: &mut [&mut Host]) -> Result<(), Box<dyn Error>> {
    for host in hosts {
        if let Some(log) = kernel_log::noticed(host)? {
            return Err(format!("the kernel of {} says:\n{log}", host.name()).into());
        }
        let refused = pvmm_lab::daemon::refused_calls(host)?;
        if !refused.is_empty() {
            return Err(format!("the daemon of {} says:\n{refused}", host.name()).into());
        }
    }
    Ok(())
}

/// Kills a host's daemon and checks that nothing of it and its guests stays behind: the module isn't in use and can be
/// unloaded, and has given back what it had claimed.
///
/// # Errors
/// What is left.
pub fn kill_daemon(host: &mut Host, daemon: u32) -> Result<(), Box<dyn Error>> {
    host.sh(&format!("kill -9 {daemon}"))?;
    host.wait(daemon, Duration::from_secs(60))?;
    let users = host.sh("awk '$1 == \"pvmm\" { print $3 }' /proc/modules")?;
    if users.trim() != "0" {
        return Err(format!("the module has users: {users:?}").into());
    }
    host.sh("rmmod pvmm")?;
    let claimed = host.sh("grep pvmm /proc/ioports /proc/interrupts; :")?;
    if !claimed.is_empty() {
        return Err(format!("still claimed: {claimed}").into());
    }
    Ok(())
}

/// Free memory of a host in KiB, without what it can drop at once.
///
/// # Errors
/// Those of the host.
pub fn free_memory(host: &mut Host) -> Result<u64, Box<dyn Error>> {
    let free =
        host.sh("echo 3 > /proc/sys/vm/drop_caches; awk '/^MemFree:/ { print $2 }' /proc/meminfo")?;
    Ok(free.trim().parse()?)
}

/// What the hardware of a 16550A says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UartSetting {
    /// Divisor of 115,200 baud.
    pub divisor: u32,
    /// Whether IIR shows the FIFOs as on.
    pub fifo: bool,
    /// LCR.
    pub line_control: u32,
}

/// Reads a host's second serial port by `inb` and `outb`, which know nothing of pvmm.
///
/// Reading IIR can take an interrupt away from the guest, so nothing that uses the port may follow.
///
/// # Errors
/// Those of the host, and unexpected output.
pub fn uart_setting(host: &mut Host) -> Result<UartSetting, Box<dyn Error>> {
    let output = host.sh(
        "set -e; lcr=$(inb 0x2fb); iir=$(inb 0x2fa); outb 0x2fb $((lcr | 128)); dll=$(inb 0x2f8); \
         dlm=$(inb 0x2f9); outb 0x2fb $lcr; echo $((dll | dlm << 8)) $((iir >> 6)) $lcr",
    )?;
    let numbers: Vec<u32> = output
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [divisor, fifo, line_control] = numbers[..] else {
        return Err(format!("three numbers expected, got {output:?}").into());
    };
    Ok(UartSetting {
        divisor,
        fifo: fifo == 3,
        line_control,
    })
}
