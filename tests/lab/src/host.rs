//! One emulated host: boot it, talk to it, end it.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use pvmm_agent::{Frame, Request, MAX_PAYLOAD, PORT};

use crate::conversation;
use crate::error::{file, start, LabError, Result};
use crate::image::Image;
use crate::machine::{self, Card, Emulator, MachineConfig};
use crate::net::{Net, Wire};
use crate::process::tail_of;
use crate::serial::SerialLine;
use crate::tree::Tree;

/// How long a command in a host may take unless said otherwise.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(300);

/// Pause between two looks at something that has no event to wait for (a file that an emulator
/// writes, a port that isn't open yet).
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long to wait for an answer from a host that may not have a network yet: TCP itself would try
/// again only after a second.
const KNOCK: Duration = Duration::from_millis(250);

/// What the debug kernel takes of a host's memory beyond what Debian's does, in MB: an eighth of it all for what may be
/// accessed, and what it remembers of each lock and allocation.
const DEBUG_MEMORY_MB: u32 = 384;

/// What kind of host to boot.
#[derive(Debug, Clone)]
pub struct HostSpec {
    /// Its name, for logs and messages.
    pub name: String,
    /// The emulator that plays it.
    pub emulator: Emulator,
    /// Number of CPUs.
    pub cpus: u8,
    /// Which CPU Bochs plays, by its name there.
    pub model: &'static str,
    /// Memory in MB; more on the debug kernel, for itself.
    pub memory_mb: u32,
}

impl HostSpec {
    /// A machine with VT-x, one CPU and 640 MB.
    pub fn new(name: &str) -> Self {
        HostSpec {
            name: name.to_owned(),
            emulator: Emulator::Bochs,
            cpus: 1,
            model: "tigerlake",
            memory_mb: 640,
        }
    }

    /// The same, without VT-x.
    pub fn without_vtx(name: &str) -> Self {
        HostSpec {
            emulator: Emulator::Qemu,
            ..Self::new(name)
        }
    }

    /// With this CPU, by its name in Bochs.
    pub fn model(self, model: &'static str) -> Self {
        HostSpec { model, ..self }
    }

    /// With this many CPUs.
    pub fn cpus(self, cpus: u8) -> Self {
        HostSpec { cpus, ..self }
    }

    /// With this much memory, in MB.
    pub fn memory_mb(self, memory_mb: u32) -> Self {
        HostSpec { memory_mb, ..self }
    }
}

/// What a command in a host did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code, or 128 + signal number.
    pub code: i32,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
}

/// A running host; killed when dropped.
pub struct Host {
    name: String,
    number: u8,
    net: Rc<Net>,
    emulator: Child,
    folder: PathBuf,
    com2: SerialLine,
    debug: bool,
}

impl Host {
    /// Starts the emulator; the host isn't up yet when this returns.
    ///
    /// `number` (2 to 254) is the host's in its networks, `folder` an empty folder for its logs.
    ///
    /// # Errors
    /// [`LabError::Network`], [`LabError::File`], [`LabError::Start`].
    pub fn start(
        tree: &Tree,
        image: &Image,
        net: &Rc<Net>,
        number: u8,
        spec: &HostSpec,
        folder: &Path,
    ) -> Result<Self> {
        fs::create_dir_all(folder).map_err(file("can't make", folder))?;
        let com2 = SerialLine::open(&folder.join("com2.log"))?;
        let mut cards = Vec::new();
        for wire in [Wire::Control, Wire::Migration] {
            cards.push(Card {
                tap: net.plug(wire, number)?,
                mac: net.mac(wire, number),
            });
        }
        let config = MachineConfig {
            emulator: spec.emulator,
            cpus: spec.cpus,
            model: spec.model,
            memory_mb: spec.memory_mb + if image.debug { DEBUG_MEMORY_MB } else { 0 },
            cards: &cards,
            com2_port: com2.port(),
            image,
            folder,
        };
        let log = folder.join("emulator.log");
        let out = fs::File::create(&log).map_err(file("can't write", &log))?;
        let emulator = machine::command(tree, &config)?
            .stdin(Stdio::null())
            .stdout(out.try_clone().map_err(file("can't share", &log))?)
            .stderr(out)
            .spawn()
            .map_err(start("the emulator"))?;
        Ok(Host {
            name: spec.name.clone(),
            number,
            net: Rc::clone(net),
            emulator,
            folder: folder.to_owned(),
            com2,
            debug: image.debug,
        })
    }

    /// The name from its [`HostSpec`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has booted the debug kernel.
    pub fn is_debug(&self) -> bool {
        self.debug
    }

    /// Its number in the networks, for [`Net::cut`] and the like.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Its address on a network.
    pub fn address(&self, wire: Wire) -> std::net::Ipv4Addr {
        self.net.address(wire, self.number)
    }

    /// The far end of its second serial port (a 16550A at 2F8h, IRQ 3).
    pub fn com2(&self) -> &SerialLine {
        &self.com2
    }

    /// File that holds what it has printed on its console.
    pub fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    /// What it has printed on its console so far.
    pub fn console(&self) -> String {
        // The emulator makes the file with the first character.
        let bytes = fs::read(self.console_log()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until the agent answers.
    ///
    /// # Errors
    /// [`LabError::Timeout`], [`LabError::HostDied`].
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        let address = self.agent_address();
        loop {
            self.check_alive("its agent")?;
            if TcpStream::connect_timeout(&address, KNOCK).is_ok()
                && self.request(&Request::Ping, limit, &mut |_| ()).is_ok()
            {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(self.timeout("its agent's answer", limit));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until a line of the console contains `text`, and returns that line.
    ///
    /// # Errors
    /// [`LabError::Timeout`], [`LabError::HostDied`].
    pub fn wait_for_line(&mut self, text: &str, limit: Duration) -> Result<String> {
        let until = Instant::now() + limit;
        let what = format!("the console line {text:?}");
        loop {
            let alive = self.check_alive(&what);
            let console = self.console();
            if let Some(line) = console.lines().find(|line| line.contains(text)) {
                return Ok(line.trim_end().to_owned());
            }
            alive?;
            if Instant::now() >= until {
                return Err(self.timeout(&what, limit));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Runs a program and returns what it did, whatever its exit code.
    ///
    /// # Errors
    /// [`LabError::Refused`] if it can't be started; [`LabError::Timeout`], [`LabError::HostDied`],
    /// [`LabError::Agent`].
    pub fn run(&mut self, argv: &[&str]) -> Result<Output> {
        self.run_with(argv, COMMAND_LIMIT, &mut |_| ())
    }

    /// As [`Host::run`], with a limit, and showing each piece of output as it comes.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn run_with(
        &mut self,
        argv: &[&str],
        limit: Duration,
        show: &mut dyn FnMut(&Frame),
    ) -> Result<Output> {
        let request = Request::Run { argv: owned(argv) };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let last = self.request(&request, limit, &mut |frame| {
            show(frame);
            match frame {
                Frame::Stdout(bytes) => stdout.extend_from_slice(bytes),
                Frame::Stderr(bytes) => stderr.extend_from_slice(bytes),
                _ => {}
            }
        })?;
        match last {
            Frame::Exit(code) => Ok(Output {
                code,
                stdout: String::from_utf8_lossy(&stdout).into_owned(),
                stderr: String::from_utf8_lossy(&stderr).into_owned(),
            }),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Runs a shell command line, which must succeed, and returns its standard output.
    ///
    /// # Errors
    /// [`LabError::Failed`] if it exits with another code than 0; those of [`Host::run`].
    pub fn sh(&mut self, script: &str) -> Result<String> {
        self.sh_with(script, COMMAND_LIMIT)
    }

    /// As [`Host::sh`], with a limit.
    ///
    /// # Errors
    /// As [`Host::sh`].
    pub fn sh_with(&mut self, script: &str, limit: Duration) -> Result<String> {
        let out = self.run_with(&["sh", "-c", script], limit, &mut |_| ())?;
        if out.code == 0 {
            return Ok(out.stdout);
        }
        Err(LabError::Failed {
            host: self.name.clone(),
            command: script.to_owned(),
            code: out.code,
            stdout: out.stdout,
            stderr: out.stderr,
        })
    }

    /// Starts a program in the background, its output in the host's file `log`; returns its process
    /// id.
    ///
    /// # Errors
    /// Those of [`Host::run`].
    pub fn spawn(&mut self, argv: &[&str], log: &str) -> Result<u32> {
        let request = Request::Spawn {
            argv: owned(argv),
            log: log.to_owned(),
        };
        let mut pid = Vec::new();
        self.request(&request, COMMAND_LIMIT, &mut |frame| {
            if let Frame::Data(bytes) = frame {
                pid.clone_from(bytes);
            }
        })?;
        String::from_utf8_lossy(&pid)
            .parse()
            .map_err(|_| self.unexpected(&Frame::Data(pid)))
    }

    /// Waits for the end of a background program and returns its exit code.
    ///
    /// # Errors
    /// Those of [`Host::run`].
    pub fn wait(&mut self, pid: u32, limit: Duration) -> Result<i32> {
        match self.request(&Request::Wait { pid }, limit, &mut |_| ())? {
            Frame::Exit(code) => Ok(code),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Writes a file into the host, with these permission bits.
    ///
    /// # Errors
    /// Those of [`Host::run`].
    pub fn put(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let mut stream = self.connect(COMMAND_LIMIT)?;
        let request = Request::Put {
            path: path.to_owned(),
            mode,
        };
        let sent = Frame::request(&request)
            .and_then(|frame| frame.write_to(&mut stream))
            .and_then(|()| {
                content
                    .chunks(MAX_PAYLOAD)
                    .try_for_each(|chunk| Frame::Data(chunk.to_vec()).write_to(&mut stream))
            })
            .and_then(|()| Frame::Done.write_to(&mut stream));
        sent.map_err(|e| self.agent(e))?;
        self.answer(&mut stream, COMMAND_LIMIT, &mut |_| ())?;
        Ok(())
    }

    /// Copies a file of this machine into the host, executable.
    ///
    /// # Errors
    /// Those of [`Host::run`]; [`LabError::File`].
    pub fn put_file(&mut self, path: &str, source: &Path) -> Result<()> {
        let content = fs::read(source).map_err(file("can't read", source))?;
        self.put(path, 0o755, &content)
    }

    /// Reads a file of the host.
    ///
    /// # Errors
    /// Those of [`Host::run`].
    pub fn get(&mut self, path: &str) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let request = Request::Get {
            path: path.to_owned(),
        };
        self.request(&request, COMMAND_LIMIT, &mut |frame| {
            if let Frame::Data(bytes) = frame {
                content.extend_from_slice(bytes);
            }
        })?;
        Ok(content)
    }

    /// The time-stamp counter of the host's first CPU.
    ///
    /// # Errors
    /// Those of [`Host::run`].
    pub fn tsc(&mut self) -> Result<u64> {
        self.sh("[ -c /dev/cpu/0/msr ] || insmod /lib/modules/msr.ko")?;
        // IA32_TIME_STAMP_COUNTER is MSR 10h; the device wants the MSR's number as the offset.
        self.sh(
            "dd if=/dev/cpu/0/msr of=/tmp/tsc bs=8 iflag=skip_bytes skip=16 count=1 2>/dev/null",
        )?;
        let bytes = self.get("/tmp/tsc")?;
        let counter = <[u8; 8]>::try_from(bytes.as_slice()).map_err(|_| LabError::Refused {
            host: self.name.clone(),
            message: format!("its time-stamp counter was read as {} bytes", bytes.len()),
        })?;
        Ok(u64::from_le_bytes(counter))
    }

    /// Switches the host off and waits until its emulator has ended.
    ///
    /// # Errors
    /// [`LabError::Timeout`]; [`LabError::Start`] if the emulator can't be waited for.
    pub fn power_off(&mut self, limit: Duration) -> Result<()> {
        // The emulated serial port sends what it holds before the power goes: give it that time.
        // No answer can come: the agent goes down with the host.
        let _ = self.run_with(
            &["sh", "-c", "usleep 100000; poweroff -f"],
            limit,
            &mut |_| (),
        );
        let until = Instant::now() + limit;
        while self
            .emulator
            .try_wait()
            .map_err(start("the emulator"))?
            .is_none()
        {
            if Instant::now() >= until {
                return Err(self.timeout("its power-off", limit));
            }
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Pulls the plug.
    pub fn kill(&mut self) {
        // Either it runs and can be killed, or it has ended.
        let _ = self.emulator.kill();
        let _ = self.emulator.wait();
    }

    fn agent_address(&self) -> SocketAddr {
        SocketAddr::from((self.address(Wire::Control), PORT))
    }

    fn connect(&mut self, limit: Duration) -> Result<TcpStream> {
        self.check_alive("its agent")?;
        TcpStream::connect_timeout(&self.agent_address(), limit).map_err(|e| self.agent(e))
    }

    fn request(
        &mut self,
        request: &Request,
        limit: Duration,
        show: &mut dyn FnMut(&Frame),
    ) -> Result<Frame> {
        let mut stream = self.connect(limit)?;
        Frame::request(request)
            .and_then(|frame| frame.write_to(&mut stream))
            .map_err(|e| self.agent(e))?;
        self.answer(&mut stream, limit, show)
    }

    /// Reads frames until the last, which it returns.
    fn answer(
        &mut self,
        stream: &mut TcpStream,
        limit: Duration,
        show: &mut dyn FnMut(&Frame),
    ) -> Result<Frame> {
        match conversation::answer(stream, limit, &mut self.emulator, show) {
            Ok(Frame::Failed(message)) => Err(LabError::Refused {
                host: self.name.clone(),
                message,
            }),
            Ok(frame) => Ok(frame),
            Err(e) => {
                self.check_alive("a command")?;
                Err(if e.kind() == std::io::ErrorKind::TimedOut {
                    self.timeout("a command's end", limit)
                } else {
                    self.agent(e)
                })
            }
        }
    }

    fn check_alive(&mut self, what: &str) -> Result<()> {
        let ended = self.emulator.try_wait().map_err(start("the emulator"))?;
        let console = self.console();
        let status = match ended {
            Some(status) => status.to_string(),
            None if console.contains("Kernel panic") => "its kernel panicked".to_owned(),
            None => return Ok(()),
        };
        let tail = if console.is_empty() {
            tail_of(&self.folder.join("emulator.log"))
        } else {
            tail_of(&self.console_log())
        };
        Err(LabError::HostDied {
            host: self.name.clone(),
            what: what.to_owned(),
            status,
            console: self.console_log(),
            tail,
        })
    }

    fn timeout(&self, what: &str, limit: Duration) -> LabError {
        LabError::Timeout {
            host: self.name.clone(),
            what: what.to_owned(),
            limit,
            console: self.console_log(),
        }
    }

    fn agent(&self, source: std::io::Error) -> LabError {
        LabError::Agent {
            host: self.name.clone(),
            source,
        }
    }

    fn unexpected(&self, frame: &Frame) -> LabError {
        self.agent(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("unexpected answer {frame:?}"),
        ))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
        for wire in [Wire::Control, Wire::Migration] {
            // Gone with the namespace at the latest.
            let _ = self.net.unplug(wire, self.number);
        }
    }
}

fn owned(argv: &[&str]) -> Vec<String> {
    argv.iter().map(|word| (*word).to_owned()).collect()
}
