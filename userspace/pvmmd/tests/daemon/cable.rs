// SPDX-License-Identifier: GPL-2.0
//! A network cable between two hosts that can be cut, plugged in again, and stalled.

use pvmm_migrate::Url;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct State {
    peer: Option<Url>,
    /// How often it was cut. Who connected before a cut and was not accepted yet is cut off, too.
    cuts: usize,
    /// One end of each connection; shutting it down ends both directions.
    ends: Vec<UnixStream>,
    /// Nothing is carried, in either direction, but nothing is lost.
    stalled: bool,
}

/// The cable. Its near end is a Unix socket, its far end whatever the peer listens at.
pub struct Cable {
    directory: tempfile::TempDir,
    state: Mutex<State>,
    moves_again: Condvar,
}

impl Cable {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            state: Mutex::default(),
            moves_again: Condvar::new(),
        })
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("cable.sock")
    }

    /// The address of the near end.
    pub fn url(&self) -> Url {
        Url::Unix(self.path())
    }

    /// If somebody can connect.
    pub fn is_plugged(&self) -> bool {
        self.path().exists()
    }

    /// Connects the near end to `peer`.
    pub fn plug(self: &Arc<Self>, peer: &Url) {
        let cuts = {
            let mut state = self.state.lock().expect("no panic");
            state.peer = Some(peer.clone());
            state.cuts
        };
        let listener = UnixListener::bind(self.path()).expect("the path is free");
        let cable = Arc::clone(self);
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                cable.carry(near, cuts);
            }
        });
    }

    fn carry(self: &Arc<Self>, near: UnixStream, cuts: usize) {
        let mut state = self.state.lock().expect("no panic");
        if state.cuts != cuts {
            return;
        }
        let Some(Url::Tcp { host, port }) = &state.peer else {
            panic!("peers of these tests listen at TCP ports");
        };
        // A peer that is gone closes the connection at once.
        let Ok(far) = TcpStream::connect((host.as_str(), *port)) else {
            return;
        };
        state.ends.push(near.try_clone().expect("a descriptor"));
        let (mut near_in, mut far_out) = (
            near.try_clone().expect("a descriptor"),
            far.try_clone().expect("a descriptor"),
        );
        let cable = Arc::clone(self);
        std::thread::spawn(move || {
            cable.copy(&mut near_in, &mut far_out);
            // It may be gone already.
            let _ = far_out.shutdown(Shutdown::Both);
        });
        let cable = Arc::clone(self);
        std::thread::spawn(move || {
            let (mut near, mut far) = (near, far);
            cable.copy(&mut far, &mut near);
            let _ = near.shutdown(Shutdown::Both);
        });
    }

    /// Carries bytes until either end is gone; holds them while the cable is stalled.
    fn copy(&self, from: &mut impl Read, to: &mut impl Write) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let state = self.state.lock().expect("no panic");
            drop(
                self.moves_again
                    .wait_while(state, |state| state.stalled)
                    .expect("no panic"),
            );
            if to.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    }

    /// Breaks every connection and lets no new one through.
    pub fn cut(&self) {
        // Without its name nobody can reach the listener.
        let _ = std::fs::remove_file(self.path());
        let mut state = self.state.lock().expect("no panic");
        for end in state.ends.drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
        state.cuts += 1;
        state.stalled = false;
        self.moves_again.notify_all();
    }

    /// Carries nothing from now on, without breaking anything.
    pub fn stall(&self) {
        self.state.lock().expect("no panic").stalled = true;
    }

    /// Carries on.
    pub fn flow(&self) {
        self.state.lock().expect("no panic").stalled = false;
        self.moves_again.notify_all();
    }
}
