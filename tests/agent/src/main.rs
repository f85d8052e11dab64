//! The agent: the lab's hands inside an emulated host.
//!
//! Started by the host's `/init` when the network is up, it serves one request per TCP connection
//! (see the library of this crate for the protocol), each on a thread of its own. It is linked
//! statically, because the host's initramfs holds no C library. It trusts whoever reaches it: the
//! control network exists only inside the network namespace of one test run.

#![forbid(unsafe_code)]

mod serve;

use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

fn main() -> ExitCode {
    let listener = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, pvmm_agent::PORT)) {
        Ok(listener) => listener,
        Err(e) => {
            eprintln!("pvmm-agent: can't listen on port {}: {e}", pvmm_agent::PORT);
            return ExitCode::FAILURE;
        }
    };
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
    ExitCode::FAILURE
}
