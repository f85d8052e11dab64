//! Moves over TLS with certificates that one of the hosts has made, and peers that are kept out.

#![forbid(unsafe_code)]

use std::error::Error;
use std::time::Duration;

use pvmm_e2e::guest::{
    check_logs, console, daemon_with, migrate, start, wait_for, Departure, APIC,
};
use pvmm_e2e::{on_lab, TestResult};
use pvmm_lab::{Host, HostSpec, Wire};

/// Where the CA is, on one of the hosts.
const CA: &str = "/tmp/ca";
/// Where a daemon looks by default.
const DIRECTORY: &str = "/etc/pki/pvmm";
/// What a host needs, in QEMU's names.
const FILES: [&str; 5] = [
    "ca-cert.pem",
    "server-cert.pem",
    "server-key.pem",
    "client-cert.pem",
    "client-key.pem",
];

/// Makes a host's certificate on `issuer`, for its address on the wire of migrations.
fn issue(issuer: &mut Host, name: &str, address: &str) -> TestResult {
    issuer.sh(&format!(
        "pvmmd cert issue {name} --tls-dir {CA} --out /tmp/{name} --address {address}"
    ))?;
    Ok(())
}

/// Carries a host's files to it, as its operator would.
fn carry(issuer: &mut Host, name: &str, to: &mut Host) -> TestResult {
    for file in FILES {
        let content = issuer.get(&format!("/tmp/{name}/{file}"))?;
        to.put(&format!("{DIRECTORY}/{file}"), 0o600, &content)?;
    }
    Ok(())
}

/// Ends a host's daemon and starts another with these options; returns its process id.
fn restart(host: &mut Host, pid: u32, options: &str) -> Result<u32, Box<dyn Error>> {
    host.sh(&format!("kill {pid}"))?;
    host.wait(pid, Duration::from_secs(60))?;
    daemon_with(host, options)
}

/// Tries to move guest `g`, which must fail before a page is sent; returns what was said.
fn refused(from: &mut Host, to: &mut Host) -> Result<String, Box<dyn Error>> {
    let said = Departure::begin(from, to, "g", "")?.fails(from)?;
    let info = from.sh("pvmmd job-info g")?;
    assert!(info.contains("transferred:        0"), "{info}");
    assert!(from.sh("pvmmd list")?.contains("running"));
    let there = to.sh("pvmmd list")?;
    assert!(
        !there.contains("running") && !there.contains("inmigrate"),
        "{there}"
    );
    Ok(said)
}

#[test]
fn a_guest_moves_over_tls_and_strangers_are_kept_out() -> TestResult {
    on_lab("tls", 2, |lab| {
        let (mut one, mut two) = lab.boot_two(&HostSpec::new("one"), &HostSpec::new("two"))?;
        let addresses = [&one, &two].map(|host| host.address(Wire::Migration).to_string());
        for host in [&mut one, &mut two] {
            host.sh("insmod /lib/modules/pvmm.ko")?;
        }
        one.sh(&format!("pvmmd cert init --tls-dir {CA}"))?;
        issue(&mut one, "one", &addresses[0])?;
        issue(&mut one, "two", &addresses[1])?;
        one.sh(&format!("mkdir -p /etc/pki && cp -r /tmp/one {DIRECTORY}"))?;

        // Without certificates a daemon doesn't listen, and says what it needs.
        let out = two.run(&["pvmmd", "serve", "--listen", "tcp:0.0.0.0:7000"])?;
        assert_ne!(out.code, 0);
        for part in ["ca-cert.pem", "pvmmd cert init", "--insecure"] {
            assert!(out.stderr.contains(part), "{}", out.stderr);
        }
        carry(&mut one, "two", &mut two)?;
        let shown = two.sh("pvmmd cert show")?;
        assert!(shown.contains(&addresses[1]), "{shown}");

        let parameters = "pvmm.load=idle pvmm.gap_ms=240000 nowatchdog";
        daemon_with(&mut one, "--allow-peer two")?;
        let target = daemon_with(&mut two, "--allow-peer three")?;
        start(&mut one, "g", APIC, parameters, "")?;
        let said = refused(&mut one, &mut two)?;
        assert!(said.contains("--allow-peer"), "{said}");

        let target = restart(&mut two, target, "--insecure")?;
        let said = refused(&mut one, &mut two)?;
        assert!(said.contains("without TLS"), "{said}");

        let target = restart(&mut two, target, "--allow-peer one")?;
        let report = migrate(&mut one, &two, "g", "--downtime-limit 5000")?;
        assert!(report.contains("downtime"), "{report}");
        let seen = console(&mut two, "g")?.matches("pvmm-guest OK").count();
        wait_for(&mut two, "g", "pvmm-guest OK", seen + 2)?;
        assert!(!one.sh("pvmmd list")?.contains("running"));

        // The other way round a plain source is told why it isn't heard.
        two.sh("pvmmd stop g")?;
        restart(&mut two, target, "--insecure")?;
        start(&mut two, "g", APIC, parameters, "")?;
        let said = refused(&mut two, &mut one)?;
        assert!(said.contains("over TLS only"), "{said}");
        check_logs(&mut [&mut one, &mut two])
    })
}
