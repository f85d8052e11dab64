// SPDX-License-Identifier: GPL-2.0
//! The control socket: who may connect, and one thread for each client.
//!
//! Who can write to the socket's file can do with the guests what the daemon can. So it is the owner's alone, unless the
//! operator names a group or a mode, and every change that a client asks for is logged with the client's process and user.

use super::server::ServeError;
use super::{console, spawn, Daemon};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    bind, getsockopt, listen, socket, AddressFamily, Backlog, SockFlag, SockType, UnixAddr,
};
use nix::sys::stat::{fchmod, Mode};
use nix::unistd::Group;
use pvmm_control::{line, ControlError, Envelope, ErrorClass, Message, Reply, Request};
use std::fs;
use std::io::{self, BufReader, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{chown, DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long to wait after an error of accepting, which is most often a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many clients may wait to be accepted.
const BACKLOG: i32 = 128;

/// Who may use the control socket.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// The file's group; `None` leaves the daemon's.
    pub group: Option<String>,
    /// The file's mode. `None` is 0600, or 0660 if a group is given.
    pub mode: Option<u32>,
}

impl Access {
    fn mode(&self) -> u32 {
        self.mode.unwrap_or(match self.group {
            Some(_) => 0o660,
            None => 0o600,
        })
    }

    /// The group's number.
    fn gid(&self) -> io::Result<Option<u32>> {
        let Some(name) = &self.group else {
            return Ok(None);
        };
        if let Ok(number) = name.parse() {
            return Ok(Some(number));
        }
        match Group::from_name(name)? {
            Some(group) => Ok(Some(group.gid.as_raw())),
            None => Err(io::Error::new(
                ErrorKind::NotFound,
                format!("there is no group \"{name}\"; make it with `groupadd`, or choose another with --socket-group"),
            )),
        }
    }
}

/// The control socket. Removed when dropped.
pub struct ControlSocket {
    path: PathBuf,
    listener: UnixListener,
}

impl ControlSocket {
    /// Takes the socket at `path`; whoever has it is the one daemon there. The socket of a daemon that is gone is
    /// replaced. Clients that connect wait until [`Self::serve`].
    ///
    /// # Errors
    ///
    /// Somebody has it, or it cannot be made as `access` says.
    pub fn bind(path: &Path, access: &Access) -> Result<Self, ServeError> {
        let failed = |reason| ServeError::Socket {
            path: path.to_owned(),
            reason,
        };
        if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .map_err(failed)?;
        }
        let gid = access.gid().map_err(failed)?;
        let listener = match listener(path) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                if UnixStream::connect(path).is_ok() {
                    return Err(ServeError::Running(path.to_owned()));
                }
                fs::remove_file(path).map_err(failed)?;
                listener(path).map_err(failed)?
            }
            other => other.map_err(failed)?,
        };
        // Made first, so that an error below takes the file away again.
        let control = Self {
            path: path.to_owned(),
            listener,
        };
        // The group first: the mode is not meant for the one that the file was made with.
        if gid.is_some() {
            chown(path, None, gid).map_err(failed)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(access.mode())).map_err(failed)?;
        Ok(control)
    }

    /// Serves clients, in threads.
    pub fn serve(&self, daemon: &Arc<Daemon>) -> Result<(), ServeError> {
        let listener = self
            .listener
            .try_clone()
            .map_err(|reason| ServeError::Socket {
                path: self.path.clone(),
                reason,
            })?;
        let daemon = Arc::clone(daemon);
        spawn("control".into(), move || loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    let daemon = Arc::clone(&daemon);
                    let serve = move || serve_client(&daemon, &stream);
                    if let Err(error) = spawn("client".into(), serve) {
                        tracing::warn!(%error, "a client is turned away");
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a client cannot be accepted");
                    std::thread::sleep(ACCEPT_PAUSE);
                }
            }
        })?;
        Ok(())
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // It may have been removed by hand.
        let _ = fs::remove_file(&self.path);
    }
}

/// A listening socket that nobody but its owner can use at any instant.
fn listener(path: &Path) -> io::Result<UnixListener> {
    let socket = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // The file gets the socket's mode (less the umask), so there is no moment at which it is open to others.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR)?;
    bind(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    listen(&socket, Backlog::new(BACKLOG)?)?;
    Ok(UnixListener::from(socket))
}

/// Serves one client until it goes.
fn serve_client(daemon: &Arc<Daemon>, stream: &UnixStream) {
    // As they were when it connected.
    let (pid, uid, gid) = match getsockopt(stream, PeerCredentials) {
        Ok(peer) => (peer.pid(), peer.uid(), peer.gid()),
        Err(error) => {
            tracing::warn!(%error, "a client is turned away: it cannot be said who it is");
            return;
        }
    };
    let _span = tracing::info_span!("client", pid, uid, gid).entered();
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    loop {
        let envelope: Envelope = match line::read(&mut reader) {
            Ok(Some(envelope)) => envelope,
            Ok(None) => return,
            Err(error) => {
                let error = ControlError::invalid(format!("the request cannot be read: {error}"));
                // The client may be gone, and the stream is out of step.
                let _ = line::write(&mut writer, &Message::Error(error));
                return;
            }
        };
        if envelope.request.changes() {
            tracing::info!(
                request = envelope.request.command(),
                guest = envelope.request.guest(),
                "asked"
            );
        }
        if let Request::Console(request) = &envelope.request {
            if envelope.version == pvmm_control::VERSION {
                if let Ok(guest) = daemon.guest(&request.name) {
                    if line::write(&mut writer, &Message::Return(Reply::Done)).is_ok() {
                        console::attach(&guest, reader, stream, request.backlog);
                    }
                    return;
                }
            }
        }
        let message = match respond(daemon, envelope, writer) {
            Ok(reply) => Message::Return(reply),
            Err(error) => Message::Error(error),
        };
        if line::write(&mut writer, &message).is_err() {
            return;
        }
    }
}

fn respond(
    daemon: &Daemon,
    envelope: Envelope,
    mut writer: &UnixStream,
) -> Result<Reply, ControlError> {
    if envelope.version != pvmm_control::VERSION {
        return Err(ControlError::new(
            ErrorClass::Version,
            format!(
                "this daemon speaks version {} of the control interface, the client {}; use the pvmmd of the daemon's version",
                pvmm_control::VERSION,
                envelope.version
            ),
        ));
    }
    daemon.answer(envelope.request, &mut |event| {
        line::write(&mut writer, &Message::Event(event))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_its_owner_s_alone_from_its_first_instant() {
        let directory = tempfile::tempdir().expect("a temporary directory can be made");
        let path = directory.path().join("socket");
        let _listener = listener(&path).expect("a new socket");
        let metadata = fs::metadata(&path).expect("it exists");
        // Before anybody has set them.
        assert_eq!(metadata.permissions().mode() & 0o077, 0);
    }

    #[test]
    fn a_group_may_write_unless_the_operator_says_otherwise() {
        let access = |group: Option<&str>, mode| {
            let group = group.map(str::to_owned);
            Access { group, mode }.mode()
        };
        assert_eq!(access(None, None), 0o600);
        assert_eq!(access(Some("adm"), None), 0o660);
        assert_eq!(access(Some("adm"), Some(0o640)), 0o640);
        assert_eq!(access(None, Some(0o666)), 0o666);
    }
}
