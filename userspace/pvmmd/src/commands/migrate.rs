// SPDX-License-Identifier: GPL-2.0
//! `pvmmd migrate` and `pvmmd job-info`: a move's progress and result.
//!
//! On a terminal a bar shows the progress, elsewhere a line for each round and each tenth of the way, with `--json` each
//! event as a line.
//!
//! SIGINT, on a terminal ^C, cancels the move and waits for its end, as in virsh; the second leaves without waiting. A client
//! that ends in any other way, because its terminal is closed or by SIGTERM, leaves the move to the daemon, which goes on.

use super::dry_run;
use super::output::{note, out};
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
use std::sync::mpsc::{channel, Sender};

/// `pvmmd migrate`.
pub fn migrate(socket: &Path, options: Migrate) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let (name, url) = (options.name.clone(), options.url.to_string());
    let request = request(&options);
    if options.dry_run {
        let request = Request::MigrateCheck(Box::new(request));
        return match client.call(request)? {
            Reply::MoveCheck(check) => dry_run::show(&check, &name, &url, options.json),
            _ => Err(ClientError::Unexpected.into()),
        };
    }
    let mut progress = Progress::new(options.json);
    let begun = cancel_on_interrupt(socket.to_owned(), name.clone(), progress.bar())?;
    let result = client.call_with_events(Request::Migrate(Box::new(request)), |event| {
        let Event::Migration(statistics) = event else {
            return;
        };
        // Only the first matters, and nobody may be listening.
        let _ = begun.send(());
        progress.show(&statistics);
    });
    progress.end();
    match result {
        Ok(Reply::Job(statistics)) => {
            let shown = match options.json {
                true => json(&Message::Return(Reply::Job(statistics))),
                false => out!("{name} runs at {url} now.").and_then(|()| breakdown(&statistics)),
            };
            // The guest has moved, whether somebody reads it or not: an exit code would say otherwise.
            if let Err(error) = shown {
                note!("pvmmd: {error}");
            }
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

/// The request that these options make.
fn request(options: &Migrate) -> pvmm_control::request::Migrate {
    pvmm_control::request::Migrate {
        name: options.name.clone(),
        url: options.url.to_string(),
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
    out!("status:             {}", status(statistics.status))?;
    if statistics.status == Status::None {
        return Ok(());
    }
    if !statistics.phase.is_empty() {
        out!("phase:              {}", statistics.phase)?;
    }
    out!("progress:           {} %", statistics.progress_percent)?;
    out!("rounds:             {}", statistics.ram.dirty_sync_count)?;
    out!(
        "transferred:        {}",
        size::show(statistics.ram.transferred)
    )?;
    out!(
        "remaining:          {}",
        size::show(statistics.ram.remaining)
    )?;
    out!("throughput:         {:.1} Mbit/s", statistics.ram.mbps)?;
    if let Some(expected) = statistics.expected_downtime {
        out!("expected downtime:  {expected} ms")?;
    }
    if let Some(error) = &statistics.error_desc {
        out!("error:              {error}")?;
    }
    breakdown(&statistics)
}

/// SIGINT cancels, on a connection of its own. The result is to be told when the move has begun: what the daemon does not
/// know yet cannot be cancelled. A program that was started with SIGINT ignored, as a shell's background job, is left alone.
fn cancel_on_interrupt(
    socket: PathBuf,
    name: String,
    bar: Option<ProgressBar>,
) -> Result<Sender<()>, Failure> {
    let (begun, has_begun) = channel();
    if is_ignored(Signal::SIGINT) {
        return Ok(begun);
    }
    let signals = SigSet::from_iter([Signal::SIGINT]);
    signals
        .thread_block()
        .map_err(|errno| Failure::system("cannot block signals")(errno.into()))?;
    let (interrupt, is_interrupted) = channel();
    let guest = name.clone();
    let cancel_bar = bar.clone();
    std::thread::spawn(move || {
        // Ends with the program.
        if is_interrupted.recv().is_ok() && has_begun.recv().is_ok() {
            let cancelled = Client::connect(&socket)
                .and_then(|mut client| client.call(Request::MigrateCancel(Name { name: guest })));
            if let Err(error) = cancelled {
                say(cancel_bar.as_ref(), &error.to_string());
            }
        }
    });
    std::thread::spawn(move || {
        let mut asked = false;
        while signals.wait().is_ok() {
            if asked {
                let text = format!("not waiting; `pvmmd job-info {name}` shows how the move ends");
                say(bar.as_ref(), &text);
                std::process::exit(1);
            }
            asked = true;
            let text = "cancelling the move; ^C again leaves without waiting for its end";
            say(bar.as_ref(), text);
            // The other thread may have nothing more to do.
            let _ = interrupt.send(());
        }
    });
    Ok(begun)
}

/// Tells the user something, above the bar if there is one: it would draw over it.
fn say(bar: Option<&ProgressBar>, text: &str) {
    match bar {
        Some(bar) => bar.println(format!("pvmmd: {text}")),
        None => note!("pvmmd: {text}"),
    }
}

/// If this process ignores a signal: a blocked signal that is ignored still reaches who waits for it.
fn is_ignored(signal: Signal) -> bool {
    let ignored = std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let mask = status
                .lines()
                .find_map(|line| line.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        });
    // Signal 1 is bit 0.
    ignored.is_some_and(|mask| mask >> (signal as u32 - 1) & 1 == 1)
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

    /// The bar, if there is one.
    fn bar(&self) -> Option<ProgressBar> {
        match self {
            Self::Bar(bar) => Some(bar.clone()),
            Self::Lines { .. } | Self::Json => None,
        }
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
                    note!(
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
                    note!("pvmmd: {error}");
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

fn breakdown(statistics: &Statistics) -> Result<(), Failure> {
    out!("{:<12} {:>12} {:>14}", "", "total (ms)", "downtime (ms)")?;
    let (Some(total), Some(down)) = (&statistics.breakdown, &statistics.downtime_breakdown) else {
        return out!("{:<12} {:>12}", "total", statistics.total_time);
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
        out!("{name:<12} {:>12.1} {:>14.1}", part(total), part(down))?;
    }
    Ok(())
}
