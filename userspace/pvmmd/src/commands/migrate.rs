// SPDX-License-Identifier: GPL-2.0
//! `pvmmd migrate` and `pvmmd job-info`: a move's progress and result.
//!
//! On a terminal a bar shows the progress, elsewhere a line for each round and each tenth of the way, with `--json` each event as a line. ^C cancels
//! the move and waits for its end; a second ^C leaves at once and the move goes on.

use super::show::json;
use super::Failure;
use crate::cli::{GuestOutput, Migrate};
use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::signal::{SigSet, Signal};
use pvmm_control::request::Name;
use pvmm_control::{size, Client, ClientError, Event, Message, Reply, Request};
use pvmm_migrate::statistics::{Breakdown, Status};
use pvmm_migrate::{Mode, Statistics, TimeoutAction};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// `pvmmd migrate`.
pub fn migrate(socket: &Path, options: Migrate) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    cancel_on_interrupt(socket.to_owned(), options.name.clone())?;
    let (name, url) = (options.name.clone(), options.url.to_string());
    let request = pvmm_control::request::Migrate {
        name: options.name,
        url: url.clone(),
        mode: Some(
            match options.mode {
                Mode::Precopy => "precopy",
                Mode::Stopcopy => "stopcopy",
            }
            .into(),
        ),
        downtime_limit: options.downtime_limit,
        // Its parser keeps it far below an overflow.
        max_bandwidth: options.bandwidth.map(|mib| mib << 20),
        timeout: options.timeout,
        timeout_action: Some(
            match options.timeout_action {
                TimeoutAction::Cancel => "cancel",
                TimeoutAction::Suspend => "suspend",
                TimeoutAction::Ignore => "ignore",
            }
            .into(),
        ),
    };
    let mut progress = Progress::new(options.json);
    let result = client.call_with_events(Request::Migrate(Box::new(request)), |event| {
        let Event::Migration(statistics) = event;
        progress.show(&statistics);
    });
    progress.end();
    match result {
        Ok(Reply::Job(statistics)) if options.json => {
            json(&Message::Return(Reply::Job(statistics)))
        }
        Ok(Reply::Job(statistics)) => {
            println!("{name} runs at {url} now.");
            print_breakdown(&statistics);
            Ok(())
        }
        Ok(_) => Err(ClientError::Unexpected.into()),
        Err(ClientError::Control(error)) if options.json => {
            json(&Message::Error(error.clone()))?;
            Err(ClientError::Control(error).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// `pvmmd job-info`.
pub fn job_info(socket: &Path, options: GuestOutput) -> Result<(), Failure> {
    let request = Request::JobInfo(Name { name: options.name });
    let Reply::Job(statistics) = Client::connect(socket)?.call(request)? else {
        return Err(ClientError::Unexpected.into());
    };
    if options.json {
        return json(&statistics);
    }
    println!("status:             {}", status(statistics.status));
    if statistics.status == Status::None {
        return Ok(());
    }
    if !statistics.phase.is_empty() {
        println!("phase:              {}", statistics.phase);
    }
    println!("progress:           {} %", statistics.progress_percent);
    println!("rounds:             {}", statistics.ram.dirty_sync_count);
    println!(
        "transferred:        {}",
        size::show(statistics.ram.transferred)
    );
    println!(
        "remaining:          {}",
        size::show(statistics.ram.remaining)
    );
    println!("throughput:         {:.1} Mbit/s", statistics.ram.mbps);
    if let Some(expected) = statistics.expected_downtime {
        println!("expected downtime:  {expected} ms");
    }
    if let Some(error) = &statistics.error_desc {
        println!("error:              {error}");
    }
    print_breakdown(&statistics);
    Ok(())
}

/// A second connection cancels when the user presses ^C.
fn cancel_on_interrupt(socket: PathBuf, name: String) -> Result<(), Failure> {
    let signals = SigSet::from_iter([Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|errno| Failure::system("cannot block signals")(errno.into()))?;
    std::thread::spawn(move || {
        let mut asked = false;
        while signals.wait().is_ok() {
            if asked {
                eprintln!("pvmmd: the move goes on; `pvmmd job-info {name}` shows how far it is");
                std::process::exit(1);
            }
            asked = true;
            let cancelled = Client::connect(&socket).and_then(|mut client| {
                client.call(Request::MigrateCancel(Name { name: name.clone() }))
            });
            match cancelled {
                Ok(_) => eprintln!("pvmmd: cancelling"),
                Err(error) => eprintln!("pvmmd: {error}"),
            }
        }
    });
    Ok(())
}

/// A status as QMP spells it.
fn status(status: Status) -> String {
    match serde_json::to_value(status) {
        Ok(serde_json::Value::String(text)) => text,
        _ => format!("{status:?}"),
    }
}

/// How the progress is shown.
enum Progress {
    Bar(ProgressBar),
    Lines { last: (Status, u64, u8) },
    Json,
}

impl Progress {
    fn new(as_json: bool) -> Self {
        if as_json {
            return Self::Json;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines {
                last: (Status::None, 0, 0),
            };
        }
        let bar = ProgressBar::new(100);
        // The template is fixed and valid; a bar without style would be shown otherwise.
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos:>3} % {msg}") {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    fn show(&mut self, statistics: &Statistics) {
        match self {
            Self::Bar(bar) => {
                bar.set_position(statistics.progress_percent.into());
                bar.set_message(summary(statistics));
            }
            Self::Lines { last } => {
                let now = (
                    statistics.status,
                    statistics.ram.dirty_sync_count,
                    statistics.progress_percent / 10,
                );
                if now != *last {
                    *last = now;
                    eprintln!(
                        "{:>3} % {}",
                        statistics.progress_percent,
                        summary(statistics)
                    );
                }
            }
            Self::Json => {
                // A closed output ends the program by its exit code, not here.
                let event = Message::Event(Event::Migration(Box::new(statistics.clone())));
                if let Err(error) = json(&event) {
                    eprintln!("pvmmd: {error}");
                }
            }
        }
    }

    fn end(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

fn summary(statistics: &Statistics) -> String {
    let ram = &statistics.ram;
    let mut text = format!(
        "{}, round {}, {:.0} Mbit/s, {} left",
        status(statistics.status),
        ram.dirty_sync_count,
        ram.mbps,
        size::show(ram.remaining)
    );
    if let Some(expected) = statistics.expected_downtime {
        text += &format!(", expected downtime {expected} ms");
    }
    text
}

fn print_breakdown(statistics: &Statistics) {
    println!("{:<12} {:>12} {:>14}", "", "total (ms)", "downtime (ms)");
    let (Some(total), Some(down)) = (&statistics.breakdown, &statistics.downtime_breakdown) else {
        println!("{:<12} {:>12}", "total", statistics.total_time);
        return;
    };
    type Part = fn(&Breakdown) -> f64;
    let parts: [(&str, Part); 5] = [
        ("memory", |breakdown| breakdown.memory),
        ("cpu state", |breakdown| breakdown.cpu_state),
        ("device state", |breakdown| breakdown.device_state),
        ("other", |breakdown| breakdown.other),
        ("total", |breakdown| breakdown.total),
    ];
    for (name, part) in parts {
        println!("{name:<12} {:>12.1} {:>14.1}", part(total), part(down));
    }
}
