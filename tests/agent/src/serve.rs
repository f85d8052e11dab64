//! Carries out one request per connection.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use pvmm_agent::{Frame, Request, MAX_PAYLOAD};

/// Background commands that nobody has waited for yet, by process id.
#[derive(Default)]
pub struct Children(Mutex<HashMap<u32, Child>>);

impl Children {
    fn insert(&self, child: Child) -> u32 {
        let pid = child.id();
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(pid, child);
        pid
    }

    fn take(&self, pid: u32) -> Option<Child> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&pid)
    }
}

/// Serves `stream` until its one request is answered; a failure is told to the lab.
pub fn connection(mut stream: TcpStream, children: &Children) {
    // Output of a command is many small writes: waiting for more would only delay it.
    if let Err(e) = stream.set_nodelay(true) {
        eprintln!("pvmm-agent: TCP_NODELAY: {e}");
    }
    let last = match answer(&mut stream, children) {
        Ok(frame) => frame,
        Err(e) => Frame::Failed(e.to_string()),
    };
    if let Err(e) = last.write_to(&mut stream) {
        eprintln!("pvmm-agent: the lab went away: {e}");
    }
}

fn answer(stream: &mut TcpStream, children: &Children) -> io::Result<Frame> {
    let Frame::Request(json) = Frame::read_from(stream)? else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "expected a request",
        ));
    };
    match serde_json::from_slice(&json)? {
        Request::Ping => Ok(Frame::Done),
        Request::Run { argv } => run(stream, &argv),
        Request::Spawn { argv, log } => {
            let out = File::create(&log).map_err(|e| naming(&log, &e))?;
            let child = command(&argv)?
                .stdout(out.try_clone()?)
                .stderr(out)
                .spawn()
                .map_err(|e| naming(&argv[0], &e))?;
            let pid = children.insert(child);
            Frame::Data(pid.to_string().into_bytes()).write_to(stream)?;
            Ok(Frame::Done)
        }
        Request::Wait { pid } => match children.take(pid) {
            Some(mut child) => Ok(Frame::Exit(code(child.wait()?))),
            None => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no background command {pid}, or somebody waited for it already"),
            )),
        },
        Request::Put { path, mode } => put(stream, &path, mode),
        Request::Get { path } => {
            let file = File::open(&path).map_err(|e| naming(&path, &e))?;
            copy(file, stream, Frame::Data)?;
            Ok(Frame::Done)
        }
    }
}

fn command(argv: &[String]) -> io::Result<Command> {
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "empty command"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null());
    Ok(command)
}

fn run(stream: &TcpStream, argv: &[String]) -> io::Result<Frame> {
    let mut child = command(argv)?
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| naming(&argv[0], &e))?;
    // Frames of the two pipes must not mix inside each other.
    let shared = Arc::new(Mutex::new(stream.try_clone()?));
    let pump = |pipe: Option<Box<dyn Read + Send>>, frame: fn(Vec<u8>) -> Frame| {
        let out = Locked(Arc::clone(&shared));
        thread::spawn(move || match pipe {
            Some(pipe) => copy(pipe, &mut { out }, frame),
            None => Ok(()),
        })
    };
    let pumps = [
        pump(
            child
                .stdout
                .take()
                .map(|p| Box::new(p) as Box<dyn Read + Send>),
            Frame::Stdout,
        ),
        pump(
            child
                .stderr
                .take()
                .map(|p| Box::new(p) as Box<dyn Read + Send>),
            Frame::Stderr,
        ),
    ];
    let status = child.wait()?;
    for pump in pumps {
        // A pump ends with an error only when the lab has gone; there's nobody left to tell.
        let _ = pump.join();
    }
    Ok(Frame::Exit(code(status)))
}

/// A stream that two threads write whole frames to.
struct Locked(Arc<Mutex<TcpStream>>);

impl Write for Locked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn copy(mut from: impl Read, to: &mut impl Write, frame: fn(Vec<u8>) -> Frame) -> io::Result<()> {
    let mut buffer = vec![0u8; MAX_PAYLOAD];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => frame(buffer[..n].to_vec()).write_to(to)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn put(stream: &mut TcpStream, path: &str, mode: u32) -> io::Result<Frame> {
    if let Some(folder) = Path::new(path).parent() {
        fs::create_dir_all(folder).map_err(|e| naming(path, &e))?;
    }
    // A running program's file can't be rewritten: replace it.
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(naming(path, &e)),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|e| naming(path, &e))?;
    loop {
        match Frame::read_from(stream)? {
            Frame::Data(bytes) => file.write_all(&bytes).map_err(|e| naming(path, &e))?,
            Frame::Done => return Ok(Frame::Done),
            _ => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "expected the file's bytes",
                ))
            }
        }
    }
}

fn code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(-1)
}

fn naming(what: &str, e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("{what}: {e}"))
}
