// SPDX-License-Identifier: GPL-2.0
//! A network cable between two hosts that can be cut and plugged in again.

use pvmm_migrate::Url;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct State {
    peer: Option<Url>,
    /// One end of each connection; shutting it down ends both directions.
    ends: Vec<UnixStream>,
}

/// The cable. Its near end is a Unix socket, its far end whatever the peer listens at.
pub struct Cable {
    directory: tempfile::TempDir,
    state: Mutex<State>,
}

impl Cable {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            state: Mutex::default(),
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
        self.state.lock().expect("no panic").peer = Some(peer.clone());
        let listener = UnixListener::bind(self.path()).expect("the path is free");
        let cable = Arc::clone(self);
        std::thread::spawn(move || {
            while let Ok((near, _)) = listener.accept() {
                cable.carry(near);
            }
        });
    }

    fn carry(&self, near: UnixStream) {
        let mut state = self.state.lock().expect("no panic");
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
        std::thread::spawn(move || {
            Self::copy(&mut near_in, &mut far_out);
            // It may be gone already.
            let _ = far_out.shutdown(Shutdown::Both);
        });
        std::thread::spawn(move || {
            let (mut near, mut far) = (near, far);
            Self::copy(&mut far, &mut near);
            let _ = near.shutdown(Shutdown::Both);
        });
    }

    /// Carries bytes until either end is gone.
    fn copy(from: &mut impl Read, to: &mut impl Write) {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
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
    }
}
