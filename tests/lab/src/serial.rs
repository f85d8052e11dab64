//! The far end of a host's second serial port: what the host sends, and a way to answer.
//!
//! The emulator connects to a TCP port of the run's own loopback device. A thread keeps what arrives,
//! in memory and in a log file, so a test that fails can show it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{file, Result};

/// What has arrived, and the way back once the emulator is connected.
#[derive(Default)]
struct State {
    received: Vec<u8>,
    stream: Option<TcpStream>,
}

/// A serial line to one host.
pub struct SerialLine {
    port: u16,
    log: PathBuf,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl SerialLine {
    /// Opens the lab's end; what arrives is also written to `log`.
    ///
    /// # Errors
    /// [`crate::LabError::File`] if the port or the log can't be opened.
    pub fn open(log: &Path) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(file("can't listen for", log))?;
        let port = listener
            .local_addr()
            .map_err(file("can't listen for", log))?
            .port();
        let out = File::create(log).map_err(file("can't write", log))?;
        let shared = Arc::new((Mutex::new(State::default()), Condvar::new()));
        let receiver = Arc::clone(&shared);
        // Ends with the connection; one that never came ends with the process.
        thread::spawn(move || receive(&listener, out, &receiver));
        Ok(SerialLine {
            port,
            log: log.to_owned(),
            shared,
        })
    }

    /// The TCP port on the loopback device that the emulator must connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// All bytes so far.
    pub fn received(&self) -> Vec<u8> {
        self.lock().received.clone()
    }

    /// Waits until the bytes so far contain `wanted`; false if they don't within `limit`.
    pub fn wait_for(&self, wanted: &[u8], limit: Duration) -> bool {
        let until = Instant::now() + limit;
        let mut state = self.lock();
        loop {
            if contains(&state.received, wanted) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self
                .shared
                .1
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Sends bytes to the host.
    ///
    /// # Errors
    /// [`crate::LabError::File`] if the emulator isn't connected.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        let mut state = self.lock();
        let sent = match &mut state.stream {
            Some(stream) => stream.write_all(bytes),
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        sent.map_err(file("can't send to the serial port behind", &self.log))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn receive(listener: &TcpListener, mut log: File, shared: &(Mutex<State>, Condvar)) {
    let Ok((mut stream, _)) = listener.accept() else {
        return;
    };
    let lock = || shared.0.lock().unwrap_or_else(PoisonError::into_inner);
    lock().stream = stream.try_clone().ok();
    let mut buffer = [0u8; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        // The log is for people; the test has the bytes in memory.
        let _ = log.write_all(&buffer[..n]);
        lock().received.extend_from_slice(&buffer[..n]);
        shared.1.notify_all();
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|w| w == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_line_carries_bytes_both_ways_and_logs_them() -> Result<()> {
        let log = std::env::temp_dir().join(format!("pvmm-serial-{}", std::process::id()));
        let line = SerialLine::open(&log)?;
        let mut emulator = TcpStream::connect((Ipv4Addr::LOCALHOST, line.port()))
            .map_err(file("can't connect", &log))?;
        emulator
            .write_all(b"login: ")
            .map_err(file("can't write", &log))?;
        assert!(line.wait_for(b"login", Duration::from_secs(10)));
        assert!(!line.wait_for(b"password", Duration::from_millis(10)));
        line.send(b"root")?;
        let mut answer = [0u8; 4];
        emulator
            .read_exact(&mut answer)
            .map_err(file("can't read", &log))?;
        assert_eq!(&answer, b"root");
        assert_eq!(line.received(), b"login: ");
        std::fs::remove_file(&log).map_err(file("can't remove", &log))
    }
}
