// SPDX-License-Identifier: GPL-2.0
//! Commands that show something: as text for people, as JSON with `--json` for programs.

use super::Failure;
use crate::cli::GuestOutput;
use pvmm_control::request::Name;
use pvmm_control::{size, Client, ClientError, Reply, Request};
use pvmm_vmm::IrqChip;
use serde::Serialize;
use std::path::Path;

fn ask(socket: &Path, request: Request) -> Result<Reply, Failure> {
    Ok(Client::connect(socket)?.call(request)?)
}

fn unexpected<T>() -> Result<T, Failure> {
    Err(ClientError::Unexpected.into())
}

/// Prints a value as one line of JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string(value)
        .map_err(|error| Failure::system("cannot print JSON")(error.into()))?;
    println!("{text}");
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
    println!("{:<24} {:<16} {:>10}  DEVICES", "NAME", "STATE", "MEMORY");
    for guest in guests {
        let state = match &guest.end {
            Some(end) => format!("{} ({end})", guest.state),
            None if guest.migrating => format!("{}, moving", guest.state),
            None => guest.state.to_string(),
        };
        println!(
            "{:<24} {:<16} {:>10}  {}",
            guest.name,
            state,
            size::show(guest.memory),
            guest.devices.join(" ")
        );
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
    println!("name:     {}", guest.name);
    println!("state:    {}", guest.state);
    if let Some(end) = &guest.end {
        println!("end:      {end}");
    }
    if guest.migrating {
        println!(
            "moving:   yes (`pvmmd job-info {}` shows how far)",
            guest.name
        );
    }
    println!("memory:   {}", size::show(guest.memory));
    println!("vcpus:    {}", guest.vcpus);
    println!(
        "irqchip:  {}",
        match guest.irqchip {
            IrqChip::Pic => "pic",
            IrqChip::Apic => "apic",
        }
    );
    for device in &guest.devices {
        println!("device:   {device}");
    }
    Ok(())
}

/// `pvmmd devices`.
pub fn devices(socket: &Path, options: GuestOutput) -> Result<(), Failure> {
    let Reply::Devices(devices) = ask(socket, Request::Devices(Name { name: options.name }))?
    else {
        return unexpected();
    };
    if options.json {
        return json(&devices);
    }
    println!(
        "{:<8} {:<10} {:<10} {:<9} {:<7} {:<4} LOCATION",
        "DEVICE", "KIND", "REAL KIND", "BACKEND", "PORT", "IRQ"
    );
    for device in devices {
        println!(
            "{:<8} {:<10} {:<10} {:<9} {:<7} {:<4} {}{}",
            device.device,
            device.guest_kind,
            device.real_kind,
            device.backend,
            format!("{:#x}", device.port),
            device.irq.map_or("-".into(), |irq| irq.to_string()),
            device.location,
            device
                .host_port
                .map_or(String::new(), |port| format!(", port {port:#x}")),
        );
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
    println!("module:             {}", host.module);
    println!("features:           {}", host.features.join(" "));
    println!("max vcpus:          {}", host.max_vcpus);
    println!("host cpus:          {}", host.host_cpus);
    println!("tsc:                {} kHz", host.tsc_khz);
    println!("supported xcr0:     {:#x}", host.supported_xcr0);
    println!("vmx basic:          {:#x}", host.vmx_basic);
    println!("vmx ept/vpid:       {:#x}", host.vmx_ept_vpid_cap);
    println!("vmx procbased2:     {:#x}", host.vmx_procbased_ctls2);
    for url in &host.listen {
        println!("listens:            {url}");
    }
    for device in &host.granted {
        println!("granted:            {device}");
    }
    Ok(())
}

/// `pvmmd version`. Says this program's own version also when there is no daemon.
pub fn version(socket: &Path, as_json: bool) -> Result<(), Failure> {
    if !as_json {
        println!("pvmmd:   {}", env!("CARGO_PKG_VERSION"));
    }
    let Reply::Version(version) = ask(socket, Request::Version)? else {
        return unexpected();
    };
    if as_json {
        return json(&version);
    }
    println!(
        "daemon:  {} (control interface {})",
        version.daemon, version.control
    );
    println!(
        "module:  {} (ABI {})",
        version.module.as_deref().unwrap_or("not loaded"),
        version.api
    );
    Ok(())
}
