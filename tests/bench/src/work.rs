//! Loops of ordinary work, long enough for many timer interrupts to fall into each.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::io;
use std::thread;

use rustix::fs::{makedev, mknodat, open, unlink, FileType, Mode, OFlags, CWD};
use rustix::io::{read, write};
use rustix::pipe::pipe;
use rustix::termios::{tcdrain, tcgetattr, tcsetattr, OptionalActions};

use crate::measure::whole;

/// Rounds of arithmetic.
const COMPUTE: u64 = 40_000_000;
/// Bytes that are copied over, and how often.
const MEMORY: (usize, usize) = (8 << 20, 40);
/// System calls.
const SYSCALLS: u32 = 200_000;
/// Bytes that two threads hand each other.
const SWITCHES: u32 = 10_000;
/// How often the line is set up, and the characters that are sent each time: a FIFO full.
const SERIAL: (u32, &[u8; 16]) = (100, b"0123456789abcde\n");
/// The second serial port's numbers among Linux's devices.
const TTY_S1: (u32, u32) = (4, 65);

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

/// Sends over the second serial port, whose driver programs its registers anew each time.
///
/// # Errors
/// The system's.
pub fn serial() -> io::Result<u64> {
    const NODE: &str = "/pvmm-bench-ttyS1";
    mknodat(
        CWD,
        NODE,
        FileType::CharacterDevice,
        Mode::RUSR | Mode::WUSR,
        makedev(TTY_S1.0, TTY_S1.1),
    )?;
    let opened = open(NODE, OFlags::RDWR | OFlags::NOCTTY, Mode::empty());
    unlink(NODE)?;
    let line = opened?;
    let mut settings = tcgetattr(&line)?;
    settings.make_raw();
    let (times, text) = SERIAL;
    let mut outcome = Ok(());
    let ticks = whole(|| {
        outcome = (0..times).try_for_each(|round| {
            // Linux leaves a line alone that is as it should be.
            settings.set_speed(if round % 2 == 0 { 115_200 } else { 57_600 })?;
            tcsetattr(&line, OptionalActions::Now, &settings)?;
            write(&line, text)?;
            tcdrain(&line)
        });
    });
    outcome?;
    Ok(ticks)
}
