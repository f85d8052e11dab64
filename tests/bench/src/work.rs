//! Loops of ordinary work, long enough for many timer interrupts to fall into each.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::io;
use std::thread;

use rustix::io::{read, write};
use rustix::pipe::pipe;

use crate::measure::whole;

/// Rounds of arithmetic.
const COMPUTE: u64 = 40_000_000;
/// Bytes that are copied over, and how often.
const MEMORY: (usize, usize) = (8 << 20, 40);
/// System calls.
const SYSCALLS: u32 = 200_000;
/// Bytes that two threads hand each other.
const SWITCHES: u32 = 10_000;

/// Integer arithmetic in registers.
pub fn compute() -> u64 {
    whole(|| {
        let mut state = black_box(88_172_645_463_325_252_u64);
        for _ in 0..COMPUTE {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
        }
        black_box(state);
    })
}

/// Reads and writes over more than the caches hold.
pub fn memory() -> u64 {
    let (bytes, times) = MEMORY;
    let mut words = vec![1_u64; bytes / 8];
    whole(|| {
        for _ in 0..times {
            for word in black_box(&mut words[..]) {
                *word = word.wrapping_mul(3);
            }
        }
    })
}

/// The shortest way into the kernel and back.
pub fn syscall() -> u64 {
    whole(|| {
        for _ in 0..SYSCALLS {
            black_box(rustix::process::getppid());
        }
    })
}

/// Two threads on one CPU that wake each other through pipes.
///
/// # Errors
/// The system's.
pub fn context_switch() -> io::Result<u64> {
    let (ping_read, ping_write) = pipe()?;
    let (pong_read, pong_write) = pipe()?;
    let other = thread::spawn(move || -> io::Result<()> {
        let mut byte = [0];
        while read(&ping_read, &mut byte)? == 1 {
            write(&pong_write, &byte)?;
        }
        Ok(())
    });
    let mut outcome = Ok(());
    let ticks = whole(|| {
        outcome = (0..SWITCHES).try_for_each(|_| {
            let mut byte = [0];
            write(&ping_write, &byte)?;
            read(&pong_read, &mut byte).map(|_| ())
        });
    });
    drop(ping_write);
    outcome?;
    other
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the other thread panicked")))?;
    Ok(ticks)
}
