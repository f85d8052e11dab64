// SPDX-License-Identifier: GPL-2.0
//! Receiving memory: rounds while the guest runs at the source, and the last one while it is paused.
//!
//! Place on the path: the target's phases precopy and last-pages. A page is written as it comes; at the end every page of
//! the guest must have come at least once.

use super::Target;
use crate::channel::Record;
use crate::error::Error;
use crate::message::{Kind, Paused, RoundDone, RoundEnd};
use crate::pages::{parse, Frames};
use crate::phase::Scope;
use crate::vm::{TargetHost, TargetVm, PAGE_SIZE};
use crate::wire::WireError;
use std::time::Instant;

impl<H: TargetHost> Target<'_, H> {
    /// Takes rounds until the guest is paused; returns how many there were.
    pub(super) fn precopy(&mut self, scope: &Scope<'_>, seen: &mut Frames) -> Result<u64, Error> {
        let mut rounds = 0;
        loop {
            let record = self.channel.receive(scope)?;
            match record.kind {
                Kind::Pages => self.store(record, seen)?,
                Kind::Ping => self.pong(scope, &record)?,
                Kind::RoundEnd => {
                    let end: RoundEnd = self.channel.decode(&record)?;
                    rounds += 1;
                    self.end_round(scope, end, rounds, false)?;
                }
                Kind::Paused => {
                    self.paused_at = Some(Instant::now());
                    let paused: Paused = self.channel.decode(&record)?;
                    if paused.rounds != rounds {
                        let text = format!(
                            "{rounds} rounds have arrived, the source has sent {}",
                            paused.rounds
                        );
                        return Err(self.channel.wire(WireError::Missing(text)));
                    }
                    return Ok(rounds);
                }
                _ => {
                    return Err(self
                        .channel
                        .unexpected(&record, "pages, round-end or paused"))
                }
            }
        }
    }

    pub(super) fn last_pages(
        &mut self,
        scope: &Scope<'_>,
        seen: &mut Frames,
        rounds: u64,
    ) -> Result<(), Error> {
        let before = self.times.memory;
        loop {
            let record = self.channel.receive(scope)?;
            match record.kind {
                Kind::Pages => self.store(record, seen)?,
                Kind::RoundEnd => {
                    let end: RoundEnd = self.channel.decode(&record)?;
                    self.end_round(scope, end, rounds + 1, true)?;
                    break;
                }
                _ => return Err(self.channel.unexpected(&record, "pages or round-end")),
            }
        }
        self.times.last_pages = self.times.memory - before;
        let missing = seen.total() - seen.len();
        if missing != 0 {
            let text = format!("{missing} of {} pages were never sent", seen.total());
            return Err(self.channel.wire(WireError::Missing(text)));
        }
        Ok(())
    }

    fn end_round(
        &mut self,
        scope: &Scope<'_>,
        end: RoundEnd,
        round: u64,
        last: bool,
    ) -> Result<(), Error> {
        if (end.round, end.last) != (round, last) {
            let kind = |last| if last { "the last round" } else { "a round" };
            let text = format!(
                "the end of {} number {} has arrived where {} number {round} was due",
                kind(end.last),
                end.round,
                kind(last)
            );
            return Err(self.channel.wire(WireError::Missing(text)));
        }
        self.job
            .update(|statistics| statistics.ram.dirty_sync_count = round);
        self.channel.send(scope, &RoundDone { round })
    }

    /// Puts a batch of pages into the guest's memory.
    fn store(&mut self, record: Record, seen: &mut Frames) -> Result<(), Error> {
        let begin = Instant::now();
        let runs = parse(&record.payload).map_err(|source| self.channel.wire(source))?;
        let (mut zero, mut normal) = (0u64, 0u64);
        for run in runs {
            let new = seen
                .insert(run.gfn, run.pages)
                .map_err(|source| self.channel.wire(source))?;
            // Memory is zero until it is written: a zero page that comes first costs nothing and stays unpopulated.
            let wipe = new < run.pages;
            let vm = self
                .vm
                .as_mut()
                .ok_or_else(|| Error::Inconsistent("pages came before the guest".into()))?;
            match run.data {
                Some(data) => {
                    normal += run.pages;
                    vm.write_pages(run.gfn, data)
                        .map_err(Error::vm("write guest memory"))?;
                }
                None => {
                    zero += run.pages;
                    if wipe {
                        vm.zero_pages(run.gfn, run.pages)
                            .map_err(Error::vm("zero guest memory"))?;
                    }
                }
            }
        }
        self.times.memory += begin.elapsed();
        let (arrived, left) = (seen.len(), seen.total() - seen.len());
        self.job.update(|statistics| {
            let ram = &mut statistics.ram;
            ram.duplicate += zero;
            ram.normal += normal;
            ram.normal_bytes = ram.normal.saturating_mul(PAGE_SIZE as u64);
            ram.remaining = left.saturating_mul(PAGE_SIZE as u64);
            ram.transferred += record.payload.len() as u64;
        });
        self.channel.recycle(record);
        self.job.progress(arrived, left);
        Ok(())
    }
}
