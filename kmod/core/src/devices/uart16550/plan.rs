// SPDX-License-Identifier: GPL-2.0
//! The restore plan of a UART, for the peer's after a move and for the source's own after a move that failed.
//!
//! The UART is real, so the order matters: the lines idle (loopback) and interrupts off first; FIFOs cleared before
//! characters are put back through loopback at the highest rate; then the line's parameters; the guest's MCR ends
//! loopback; IER comes last, so that what is pending raises the interrupt as the guest expects.
#![forbid(unsafe_code)]

use super::super::error::PlanError;
use super::super::sink::Sink;
use super::super::step::{impossible, known, Plan};
use super::*;
use pvmm_uapi::{PlanStep, StateRecord};

/// Longest time for one character in loopback; it takes 87 us at 115200 baud.
const CHARACTER_LIMIT_NS: u64 = 10_000_000;
/// Certainly longer than a character at 115200 baud.
const CHARACTER_NS: u64 = 200_000;

/// The state of a UART, checked.
#[derive(Debug, Clone, Copy)]
struct State {
    dll: u64,
    dlm: u64,
    ier: u64,
    fcr: u64,
    lcr: u64,
    mcr: u64,
    scr: u64,
    /// The THR-empty interrupt is pending (if IER.ETBEI is set).
    thre: bool,
    msr: u64,
    characters: [u64; FIFO],
    count: usize,
}

/// After a master reset (table III); the divisor, which a reset leaves alone, as for 115200 baud.
const RESET: State = State {
    dll: 1,
    dlm: 0,
    ier: 0,
    fcr: 0,
    lcr: 0,
    mcr: 0,
    scr: 0,
    thre: false,
    msr: 0,
    characters: [0; FIFO],
    count: 0,
};

/// Makes the plan that brings a UART into the state of `records`, which a peer has sent.
///
/// # Errors
///
/// [`PlanError`] names the register of the first record that no UART can have, or that is missing.
pub fn plan(records: &[StateRecord], sink: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    restore(&parse(records)?, sink)
}

/// Makes the plan that brings a UART into the state after a reset, for a device that is given to a guest.
///
/// # Errors
///
/// [`PlanError::Full`] only.
pub fn reset(sink: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    restore(&RESET, sink)
}

fn parse(records: &[StateRecord]) -> Result<State, PlanError> {
    let mut state = RESET;
    let mut values = [None; RECEIVED as usize];
    for record in records {
        let register = known(NAME, REGISTERS, record)?;
        let value = record.value;
        let possible = match register.id {
            IER => value & !IER_MASK == 0,
            IIR => value == 0x01 || value == 0x02,
            FCR => value == 0 || value & FCR_ENABLE != 0 && value & !FCR_LASTING == 0,
            MCR => value & !MCR_MASK == 0,
            RECEIVED => value & !(0xff | LSR_ERRORS << 8) == 0,
            _ => true,
        };
        if !possible {
            return Err(impossible(register, record));
        }
        let place = if register.id == RECEIVED {
            let place = state.characters.get_mut(state.count);
            state.count += 1;
            place.map(|place| *place = value)
        } else {
            values
                .get_mut(usize::from(register.id))
                .filter(|place| place.is_none())
                .map(|place| *place = Some(value))
        };
        if place.is_none() {
            return Err(PlanError::Repeated {
                register: register.name,
            });
        }
    }
    let value = |id: u16, name: &'static str| {
        values
            .get(usize::from(id))
            .copied()
            .flatten()
            .ok_or(PlanError::Missing { register: name })
    };
    state.dll = value(DLL, "DLL")?;
    state.dlm = value(DLM, "DLM")?;
    state.ier = value(IER, "IER")?;
    state.thre = value(IIR, "IIR")? == 0x02;
    // Not recorded: the guest never wrote it, and it is as after the reset.
    state.fcr = value(FCR, "FCR").unwrap_or(RESET.fcr);
    state.lcr = value(LCR, "LCR")?;
    state.mcr = value(MCR, "MCR")?;
    state.msr = value(MSR, "MSR")?;
    state.scr = value(SCR, "SCR")?;
    if state.fcr & FCR_ENABLE == 0 && state.count > 1 {
        return Err(PlanError::Repeated {
            register: "received character",
        });
    }
    Ok(state)
}

fn restore(state: &State, sink: &mut Sink<'_, PlanStep>) -> Result<(), PlanError> {
    let mut plan = Plan::new(REGISTERS, sink);
    // With loopback OUT2 is inactive, which takes the interrupt off a PC's bus whatever is still enabled.
    plan.write(MCR, MCR_LOOP)?;
    plan.write(LCR, LCR_8N1)?;
    plan.write(IER, 0)?;
    // FCR0 must be set for the other bits to be taken (8.4). Then whatever the FIFOs held is gone.
    plan.write(FCR, FCR_ENABLE)?;
    plan.write(FCR, FCR_ENABLE | FCR_CLEAR_RX | FCR_CLEAR_TX)?;
    plan.write(FCR, state.fcr)?;
    plan.read(RBR)?;
    plan.read(LSR)?;
    divisor(&mut plan, 1, 0)?;
    plan.write(LCR, LCR_8N1)?;
    characters(&mut plan, state)?;
    // ETBEI going from 0 to 1 makes THRE pending (8.5). If the guest has had that interrupt already, reading IIR takes it
    // away; with only this source enabled, IIR shows no other.
    if state.ier & IER_ETBEI != 0 && !state.thre {
        plan.write(IER, IER_ETBEI)?;
        plan.read(IIR)?;
    }
    modem_lines(&mut plan, state)?;
    divisor(&mut plan, state.dll, state.dlm)?;
    plan.check(DLL, state.dll, 0xff)?;
    plan.check(DLM, state.dlm, 0xff)?;
    let lcr = state.lcr & !LCR_DLAB;
    plan.write(LCR, lcr)?;
    plan.check(LCR, lcr, 0xff)?;
    plan.write(SCR, state.scr)?;
    plan.check(SCR, state.scr, 0xff)?;
    let fifos = if state.fcr & FCR_ENABLE != 0 { 0xc0 } else { 0 };
    // IIR bits 6 and 7 are the only trace of FCR. Read before IER is restored, this takes no interrupt away.
    plan.check(IIR, fifos, 0xc0)?;
    plan.write(MCR, state.mcr)?;
    plan.check(MCR, state.mcr, MCR_MASK)?;
    plan.write(IER, state.ier)?;
    plan.check(IER, state.ier, IER_MASK)?;
    if state.lcr & LCR_DLAB != 0 {
        plan.write(LCR, state.lcr)?;
        plan.check(LCR, state.lcr, 0xff)?;
    }
    Ok(())
}

fn divisor(plan: &mut Plan<'_, '_>, dll: u64, dlm: u64) -> Result<(), PlanError> {
    plan.write(LCR, LCR_DLAB | LCR_8N1)?;
    plan.write(DLL, dll)?;
    plan.write(DLM, dlm)
}

/// Puts the characters that waited back into the receiver. Loopback must be on, 8N1 at the highest rate.
fn characters(plan: &mut Plan<'_, '_>, state: &State) -> Result<(), PlanError> {
    let is_break = |character: u64| character >> 8 & LSR_BI != 0;
    let characters = state.characters.get(..state.count).unwrap_or(&[]);
    // A read of LSR would take the mark of a break away when its turn has come, so with one the characters are timed.
    let timed = characters.iter().any(|&character| is_break(character));
    for &character in characters {
        if is_break(character) {
            plan.write(LCR, LCR_8N1 | LCR_SET_BREAK)?;
            plan.delay(LCR, CHARACTER_NS)?;
            plan.write(LCR, LCR_8N1)?;
            plan.delay(LCR, CHARACTER_NS)?;
            continue;
        }
        plan.write(THR, character & 0xff)?;
        if timed {
            plan.delay(THR, CHARACTER_NS)?;
        } else {
            let done = LSR_TEMT | LSR_DR;
            plan.poll(LSR, done, done, CHARACTER_LIMIT_NS)?;
        }
    }
    if !timed && !characters.is_empty() {
        // The receiver may finish a little after the transmitter.
        plan.delay(LSR, CHARACTER_NS)?;
        plan.check(
            LSR,
            LSR_DR | LSR_THRE | LSR_TEMT,
            LSR_DR | LSR_THRE | LSR_TEMT | 0x02,
        )?;
    }
    Ok(())
}

/// Gives the MODEM status inputs the levels that they had at the source, with exactly the changes pending that the guest
/// has not seen. Loopback must be on: it ties RTS to CTS, DTR to DSR, OUT1 to RI and OUT2 to DCD (8.7). When loopback
/// ends, an input that is different at the peer becomes a change by itself, and the guest is told.
fn modem_lines(plan: &mut Plan<'_, '_>, state: &State) -> Result<(), PlanError> {
    const RI: u64 = 0x40;
    const TERI: u64 = 0x04;
    let outputs = |lines: u64| {
        let tie = |line: u32, output: u32| (lines >> line & 1) << output;
        MCR_LOOP | tie(4, 1) | tie(5, 0) | tie(6, 2) | tie(7, 3)
    };
    let levels = state.msr & 0xf0;
    let changed = state.msr & 0x0f & !TERI;
    let mut before = levels ^ changed << 4;
    if state.msr & TERI != 0 {
        // Only a falling edge of RI counts.
        before |= RI;
    }
    plan.write(MCR, outputs(before))?;
    plan.read(MSR)?;
    if state.msr & TERI != 0 {
        plan.write(MCR, outputs(before & !RI))?;
    }
    plan.write(MCR, outputs(levels))
}
