// SPDX-License-Identifier: GPL-2.0
//! `pvmmd console`: a terminal on a guest's console. As in virsh, ^] leaves it. Whatever ends it, the terminal is left as it
//! was found.

use super::output::note;
use super::Failure;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{cfmakeraw, tcgetattr, tcsetattr, SetArg, Termios};
use pvmm_control::request::Console;
use pvmm_control::{Client, ClientError, Reply, Request};
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// ^].
const ESCAPE: u8 = 0x1d;

/// A terminal in raw mode. Restored when dropped.
struct RawTerminal(Termios);

impl RawTerminal {
    fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Connects standard input and output to a guest's console until the guest ends or the user leaves. Without a terminal
/// the end of the input leaves the output connected.
pub fn attach(socket: &Path, name: &str, backlog: bool) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let request = Request::Console(Console {
        name: name.to_owned(),
        backlog,
    });
    match client.call(request)? {
        Reply::Done => {}
        _ => return Err(ClientError::Unexpected.into()),
    }
    let mut stream = client.into_raw();
    let input = stream
        .get_ref()
        .try_clone()
        .map_err(Failure::system("cannot use the connection"))?;
    let terminal = io::stdin().is_terminal();
    let killed = Arc::new(Mutex::new(None));
    if terminal {
        leave_on_signal(stream.get_ref(), &killed)?;
    }
    let raw = if terminal {
        note!("Connected to the console of {name}. ^] leaves it.");
        Some(RawTerminal::enter().map_err(Failure::system("cannot set the terminal"))?)
    } else {
        None
    };
    let left = Arc::new(AtomicBool::new(false));
    {
        let left = Arc::clone(&left);
        // It may stay in a read of the terminal; the program's end ends it.
        std::thread::spawn(move || {
            forward(io::stdin(), input, terminal, &left);
        });
    }
    let result = copy(&mut stream, &mut io::stdout());
    drop(raw);
    if terminal {
        let how = if left.load(Ordering::SeqCst) {
            "Left"
        } else {
            "Disconnected from"
        };
        note!("\n{how} the console of {name}; `pvmmd info {name}` says what it does.");
    }
    let killed = *killed.lock().unwrap_or_else(PoisonError::into_inner);
    match killed {
        Some(signal) => Err(Failure::Signal(signal)),
        None => result.map_err(Failure::system("the console's connection broke")),
    }
}

/// Leaves the console when this program is to be ended: by itself a signal would leave the terminal raw. To be called before
/// the program has other threads. ^C and ^\ are the guest's and raise no signal.
fn leave_on_signal(
    stream: &UnixStream,
    killed: &Arc<Mutex<Option<Signal>>>,
) -> Result<(), Failure> {
    let signals = SigSet::from_iter([
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
    ]);
    signals
        .thread_block()
        .map_err(|errno| Failure::system("cannot block signals")(errno.into()))?;
    let stream = stream
        .try_clone()
        .map_err(Failure::system("cannot use the connection"))?;
    let killed = Arc::clone(killed);
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            *killed.lock().unwrap_or_else(PoisonError::into_inner) = Some(signal);
            // The daemon may have closed it in this moment.
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
    Ok(())
}

/// Copies what arrives at once, without waiting for more.
fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => {
                to.write_all(&buffer[..count])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Sends input to the guest until there is no more, or the user asks to leave: then `left` is set and the connection is
/// closed, which ends the output, too.
fn forward(mut input: impl Read, mut stream: UnixStream, terminal: bool, left: &AtomicBool) {
    let mut buffer = [0; 1024];
    loop {
        let count = match input.read(&mut buffer) {
            Ok(count @ 1..) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            _ => return,
        };
        let typed = &buffer[..count];
        let escape = typed.iter().position(|byte| terminal && *byte == ESCAPE);
        let sent = stream.write_all(&typed[..escape.unwrap_or(count)]);
        if escape.is_some() {
            // First, since whoever finds the connection closed asks for it.
            left.store(true, Ordering::SeqCst);
            // The daemon may have closed it in this moment.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
        if sent.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forwarded(input: &[u8], terminal: bool) -> (bool, Vec<u8>) {
        let (here, mut there) = UnixStream::pair().expect("a socket pair can be made");
        let left = AtomicBool::new(false);
        forward(input, here, terminal, &left);
        let mut received = Vec::new();
        there.read_to_end(&mut received).expect("a local socket");
        (left.into_inner(), received)
    }

    #[test]
    fn the_escape_character_leaves_a_terminal_and_is_data_otherwise() {
        assert_eq!(forwarded(b"abc\x1ddef", true), (true, b"abc".to_vec()));
        assert_eq!(
            forwarded(b"abc\x1ddef", false),
            (false, b"abc\x1ddef".to_vec())
        );
    }
}
