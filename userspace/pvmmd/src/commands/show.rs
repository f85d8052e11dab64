// SPDX-License-Identifier: GPL-2.0
//! Commands that show something: as text for people, as JSON with `--json` for programs.

use super::output::out;
use super::Failure;
use crate::cli::GuestOutput;
use pvmm_control::request::Name;
use pvmm_control::{size, Client, ClientError, Reply, Request};
use pvmm_vmm::IrqChip;
use serde::Serialize;
use std::path::Path;

pub(super) fn ask(socket: &Path, request: Request) -> Result<Reply, Failure> {
    Ok(Client::connect(socket)?.call(request)?)
}

pub(super) fn unexpected<T>() -> Result<T, Failure> {
    Err(ClientError::Unexpected.into())
}

/// Prints a value as one line of JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::system("cannot print JSON")(error.into()))?;
    out!("{text}")?;
    Ok(())
}

/// `pvmmd list`.
pub fn list(socket: &Path, as_json: bool) -> Result<(), Failure> {
    let Reply::Guests(guests) = ask(socket, Request::List)? else {
        return unexpected();
    };
    if as_json {
        return json(&guests);
    }
    out!("{:<24} {:<16} {:>10}  DEVICES", "NAME", "STATE", "MEMORY")?;
    for guest in guests {
        let state = match &guest.end {
            Some(end) => format!("{} ({end})", guest.state),
            None if guest.migrating => format!("{}, moving", guest.state),
            None => guest.state.to_string(),
        };
        out!(
            "{:<24} {:<16} {:>10}  {}",
            guest.name,
            state,
            size::show(guest.memory),
            guest.devices.join(" ")
        )?;
    }
    Ok(())
}

/// `pvmmd info`.
pub fn info(socket: &Path, options: GuestOutput) -> Result<(), Failure> {
    let Reply::Guest(guest) = ask(socket, Request::Info(Name { name: options.name }))? else {
        return unexpected();
    };
    if options.json {
        return json(&guest);
    }
    out!("name:     {}", guest.name)?;
    out!("state:    {}", guest.state)?;
    if let Some(end) = &guest.end {
        out!("end:      {end}")?;
    }
    if guest.migrating {
        out!(
            "moving:   yes (`pvmmd job-info {}` shows how far)",
            guest.name
        )?;
    }
    out!("memory:   {}", size::show(guest.memory))?;
    out!("vcpus:    {}", guest.vcpus)?;
    out!(
        "irqchip:  {}",
        match guest.irqchip {
            IrqChip::Pic => "pic",
            IrqChip::Apic => "apic",
        }
    )?;
    for device in &guest.devices {
        out!("device:   {device}")?;
    }
    Ok(())
}

/// `pvmmd capabilities`.
pub fn capabilities(socket: &Path, as_json: bool) -> Result<(), Failure> {
    let Reply::Capabilities(host) = ask(socket, Request::Capabilities)? else {
        return unexpected();
    };
    if as_json {
        return json(&host);
    }
    out!("module:             {}", host.module)?;
    out!("features:           {}", host.features.join(" "))?;
    out!("max vcpus:          {}", host.max_vcpus)?;
    out!("host cpus:          {}", host.host_cpus)?;
    out!("tsc:                {} kHz", host.tsc_khz)?;
    out!("supported xcr0:     {:#x}", host.supported_xcr0)?;
    out!("vmx basic:          {:#x}", host.vmx_basic)?;
    out!("vmx ept/vpid:       {:#x}", host.vmx_ept_vpid_cap)?;
    out!("vmx procbased2:     {:#x}", host.vmx_procbased_ctls2)?;
    for url in &host.listen {
        out!("listens:            {url}")?;
    }
    for device in &host.granted {
        out!("granted:            {device}")?;
    }
    Ok(())
}

/// `pvmmd version`. Says this program's own version also when there is no daemon.
pub fn version(socket: &Path, as_json: bool) -> Result<(), Failure> {
    if !as_json {
        out!("pvmmd:   {}", env!("CARGO_PKG_VERSION"))?;
    }
    let Reply::Version(version) = ask(socket, Request::Version)? else {
        return unexpected();
    };
    if as_json {
        return json(&version);
    }
    out!(
        "daemon:  {} (control interface {})",
        version.daemon,
        version.control
    )?;
    out!(
        "module:  {} (ABI {})",
        version.module.as_deref().unwrap_or("not loaded"),
        version.api
    )?;
    Ok(())
}
