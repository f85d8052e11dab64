//! The agent: the lab's hands inside an emulated host.
//!
//! Started by the host's `/init` when the network is up, it serves one request per TCP connection
//! (see the library of this crate for the protocol), each on a thread of its own. It is linked
//! statically, because the host's initramfs holds no C library. It trusts whoever reaches it: the
//! control network exists only inside the network namespace of one test run.
//!
//! As `pvmm-agent receive PORT` and `pvmm-agent send ADDRESS:PORT` it moves standard input of one host
//! to standard output of another by TCP (busybox's `nc` stops at the end of its own input).

#![forbid(unsafe_code)]

mod serve;

use std::env;
use std::io;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words[..] {
        [] => serve(),
        ["receive", port] => receive(port),
        ["send", address] => send(address),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "usage: pvmm-agent [receive PORT | send ADDRESS:PORT]",
        )),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("pvmm-agent: {e}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, pvmm_agent::PORT))?;
    println!("pvmm-agent: listening on port {}", pvmm_agent::PORT);
    let children = Arc::new(serve::Children::default());
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let children = Arc::clone(&children);
                thread::spawn(move || serve::connection(stream, &children));
            }
            Err(e) => eprintln!("pvmm-agent: accept: {e}"),
        }
    }
    Ok(())
}

fn receive(port: &str) -> io::Result<()> {
    let port = port
        .parse()
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    // Whoever started this waits for the word before the sender is started.
    eprintln!("listening");
    let (mut stream, _) = listener.accept()?;
    io::copy(&mut stream, &mut io::stdout().lock())?;
    Ok(())
}

fn send(address: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    io::copy(&mut io::stdin().lock(), &mut stream)?;
    stream.shutdown(Shutdown::Write)?;
    // The end of the other side's stream: it has everything.
    io::copy(&mut stream, &mut io::sink())?;
    Ok(())
}
