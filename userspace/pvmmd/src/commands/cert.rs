// SPDX-License-Identifier: GPL-2.0
//! `pvmmd cert`: makes and shows certificates. Works without a daemon.

use super::output::out;
use super::Failure;
use crate::cert::{self, CertError, HostNames};
use crate::cli::{Cert, CertInit, CertIssue, CertShow};
use pvmm_migrate::tls::{Certificate, CA_KEY};
use pvmm_migrate::Tls;

/// Executes one of them.
pub fn execute(command: Cert) -> Result<(), Failure> {
    match command {
        Cert::Init(options) => init(&options),
        Cert::Issue(options) => issue(options),
        Cert::Show(options) => show(&options),
    }
}

fn init(options: &CertInit) -> Result<(), Failure> {
    cert::init(&options.tls_dir, &options.name)?;
    let directory = options.tls_dir.display();
    out!("The CA \"{}\" is in {directory}.", options.name)?;
    out!(
        "Keep {CA_KEY} to yourself, and make each host's certificate with `pvmmd cert issue HOST`."
    )?;
    Ok(())
}

fn issue(options: CertIssue) -> Result<(), Failure> {
    let out = match options.out {
        Some(out) => out,
        // A name with a slash is none, and is refused before anything is written.
        None => options.tls_dir.join(&options.host),
    };
    let names = HostNames {
        host: options.host,
        dns: options.dns,
        addresses: options.address,
    };
    cert::issue(&names, &options.tls_dir, &out)?;
    out!(
        "The certificate of {} is in {}; carry its files to the host, for `pvmmd serve --tls-dir` there.",
        names.host,
        out.display()
    )?;
    Ok(())
}

/// Shows what can be read, and fails with what stands against its use.
fn show(options: &CertShow) -> Result<(), Failure> {
    let tls = Tls::new(&options.tls_dir);
    for (path, certificate) in tls.certificates() {
        // What cannot be read stands against its use, below.
        if let Ok(certificate) = certificate {
            out!("{}", path.display())?;
            print(&certificate)?;
        }
    }
    tls.check_server().map_err(CertError::from)?;
    tls.check_client().map_err(CertError::from)?;
    Ok(())
}

fn print(certificate: &Certificate) -> Result<(), Failure> {
    out!("  name:       {}", certificate.common_name)?;
    out!("  signed by:  {}", certificate.issuer)?;
    let addresses = certificate.addresses.iter().map(ToString::to_string);
    let names: Vec<String> = certificate
        .dns_names
        .iter()
        .cloned()
        .chain(addresses)
        .collect();
    if !names.is_empty() {
        out!("  for:        {}", names.join(", "))?;
    }
    out!("  valid from: {}", certificate.begin())?;
    out!("  valid to:   {}", certificate.expiry())
}
