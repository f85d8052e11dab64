// SPDX-License-Identifier: GPL-2.0
//! Answering a source that only asks whether its guest would be taken: nothing is made, reserved or claimed here.

use super::{Served, Target};
use crate::channel::{printable, truncated};
use crate::error::Error;
use crate::message::{Accepted, Kind};
use crate::phase::Scope;
use crate::vm::TargetHost;
use std::time::Duration;

/// Most bytes that a source may measure the link with.
const MAX_PROBE: u64 = 256 << 20;
/// How long a source may take to ask.
const LIMIT: Duration = Duration::from_secs(30);

impl<H: TargetHost> Target<'_, H> {
    /// Serves a connection with [`crate::wire::Purpose::Check`].
    pub(super) fn check(mut self) -> Result<Served<H::Vm>, Error> {
        match self.tell() {
            Ok(()) => {
                self.channel.linger();
                Ok(Served::Checked)
            }
            Err(error) => {
                self.channel
                    .give_up(truncated(&printable(&error.to_string())));
                Err(error)
            }
        }
    }

    fn tell(&mut self) -> Result<(), Error> {
        let scope = Scope::with_limit("check", LIMIT);
        let mut probed = 0;
        let mut description = loop {
            let record = self.channel.receive(&scope)?;
            match record.kind {
                Kind::Ping => self.pong(&scope, &record)?,
                Kind::Probe => {
                    probed += record.payload.len() as u64;
                    if probed > MAX_PROBE {
                        let text = format!("more than {MAX_PROBE} bytes to measure the link");
                        return Err(self.payload(Kind::Probe, text));
                    }
                    self.channel.recycle(record);
                }
                Kind::Describe => break self.channel.decode(&record)?,
                _ => return Err(self.channel.unexpected(&record, "ping, probe or describe")),
            }
        };
        let answer = self.compare(&mut description).and_then(|host| {
            self.host.check(&description)?;
            Ok(host.producer)
        });
        tracing::info!(
            guest = ?description.name,
            taken = answer.is_ok(),
            peer = self.channel.peer(),
            "somebody asks whether a guest would be taken"
        );
        match answer {
            Ok(producer) => self.channel.send(&scope, &Accepted { producer })?,
            Err(refusal) => self.refuse(&scope, &refusal),
        }
        Ok(())
    }
}
