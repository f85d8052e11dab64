// SPDX-License-Identifier: GPL-2.0
//! `pvmmd trace`: what a guest does to a device, line by line, until the guest ends or this program.

use super::output::{note, out};
use super::show::json;
use super::Failure;
use crate::cli;
use pvmm_control::reply::TracedAccess;
use pvmm_control::{request, Client, Event, Request};
use std::path::Path;

/// `pvmmd trace`.
pub fn trace(socket: &Path, options: cli::Trace) -> Result<(), Failure> {
    let request = Request::Trace(request::Trace {
        name: options.name,
        device: options.device,
    });
    let mut begun = options.json;
    let (mut lost, mut printed) = (0, Ok(()));
    Client::connect(socket)?.call_with_events(request, |event| {
        let Event::Trace(told) = event else { return };
        if !begun {
            // The daemon answers at once, so that it is seen that the trace goes on.
            begun = true;
            printed = out!(
                "{:>14}  {:<5} {:<4} {:<34} STATE",
                "TIME (ms)",
                "PORT",
                "LOG",
                "ACCESS"
            );
        }
        if told.lost != lost {
            note!(
                "pvmmd: {} accesses came too fast and are not shown",
                told.lost - lost
            );
            lost = told.lost;
        }
        for access in &told.accesses {
            if printed.is_ok() {
                printed = if options.json {
                    json(access)
                } else {
                    out!("{}", line(access))
                };
            }
        }
        if let Err(Failure::Output(_)) = &printed {
            // Nobody reads any more, and the daemon notices only that this program has gone.
            std::process::exit(1);
        }
    })?;
    printed
}

/// An access as a line of text.
fn line(access: &TracedAccess) -> String {
    let register = access.register.as_deref().unwrap_or("no register");
    let arrow = if access.write { "<-" } else { "->" };
    let text = format!(
        "{:>14.3}  {:<5} {:<4} {:<34} {}",
        access.time as f64 / 1e6,
        format!("{:#x}", access.port),
        format!(
            "{}{}",
            access.log_length,
            if access.logged { "+" } else { "" }
        ),
        format!("{register} {arrow} {:02x}h", access.value),
        access.meaning
    );
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_where_what_and_if_it_is_kept() {
        let access = TracedAccess {
            time: 1_234_567,
            port: 0x2fb,
            write: true,
            value: 3,
            register: Some("LCR".into()),
            meaning: "8n1 DLAB=0".into(),
            logged: true,
            log_length: 3,
        };
        let words = line(&access);
        let words: Vec<&str> = words.split_whitespace().collect();
        assert_eq!(words.join(" "), "1.235 0x2fb 3+ LCR <- 03h 8n1 DLAB=0");
        let read = TracedAccess {
            write: false,
            logged: false,
            register: None,
            meaning: String::new(),
            ..access
        };
        let words = line(&read);
        let words: Vec<&str> = words.split_whitespace().collect();
        assert_eq!(words.join(" "), "1.235 0x2fb 3 no register -> 03h");
    }
}
