// SPDX-License-Identifier: GPL-2.0
//! Moves between two daemons over TLS, with certificates as `pvmmd cert` makes them.

use crate::host::{beats, error, Host, Machine};
use pvmm_control::{ErrorClass, GuestState};
use pvmm_migrate::{Security, Tls, Url};
use pvmmd::cert::{self, HostNames};
use std::path::{Path, PathBuf};

/// Makes the certificate of a host that is dialled as 127.0.0.1.
pub fn issue(ca: &Path, host: &str) -> PathBuf {
    let out = ca.join(host);
    let names = HostNames {
        host: host.into(),
        addresses: vec!["127.0.0.1".parse().expect("an address")],
        ..HostNames::default()
    };
    cert::issue(&names, ca, &out).expect("there is a CA");
    out
}

fn allow(directory: &Path, names: &[&str]) -> Security {
    Security::Everywhere(Tls {
        directory: directory.to_owned(),
        allowed: names.iter().map(ToString::to_string).collect(),
    })
}

#[test]
fn a_guest_moves_there_and_back_over_tls_and_loses_no_beat() {
    let ca = tempfile::tempdir().expect("a temporary directory can be made");
    cert::init(ca.path(), "fleet").expect("an empty directory");
    let (one, two) = (issue(ca.path(), "one"), issue(ca.path(), "two"));
    let here = Host::secure(allow(&one, &["two"]));
    let there = Host::secure(allow(&two, &["one"]));
    here.run("guest", &[]).expect("nothing against it");
    let (mut text, mut moves) = (String::new(), 0);
    for (from, to) in [(&here, &there), (&there, &here)] {
        let mut console = from.console("guest");
        console.wait_for("beat");
        from.migrate("guest", &to.url)
            .0
            .expect("nothing against it");
        console.wait_end();
        text += &console.seen;
        assert_eq!(to.info("guest").state, GuestState::Running);
        moves += 1;
    }
    assert_eq!(moves, 2);
    let last = beats(&text).last().copied().expect("it has beaten");
    let mut console = here.console("guest");
    console.wait_for(&format!("beat {}\n", last + 20));
    assert!(!(text + &console.seen).contains("LOST"));
}

#[test]
fn a_peer_beyond_the_list_and_a_plain_one_leave_the_guest_where_it_was() {
    let ca = tempfile::tempdir().expect("a temporary directory can be made");
    cert::init(ca.path(), "fleet").expect("an empty directory");
    let (one, two) = (issue(ca.path(), "one"), issue(ca.path(), "two"));
    let there = Host::secure(allow(&two, &["three"]));
    for (security, due) in [
        (allow(&one, &[]), "--allow-peer"),
        (Security::Insecure, "over TLS only"),
    ] {
        let here = Host::secure(security);
        here.run("guest", &[]).expect("nothing against it");
        let refused = error(here.migrate("guest", &there.url).0);
        assert_eq!(refused.class, ErrorClass::Failed);
        assert!(refused.desc.contains(due), "{refused}");
        assert_eq!(here.info("guest").state, GuestState::Running);
        assert_eq!(there.guests(), []);
    }
}

#[test]
fn certificates_that_appear_later_need_no_restart() {
    let ca = tempfile::tempdir().expect("a temporary directory can be made");
    cert::init(ca.path(), "fleet").expect("an empty directory");
    let there = Host::secure(allow(&issue(ca.path(), "two"), &[]));
    let one = ca.path().join("one");
    let spare = tempfile::tempdir().expect("a temporary directory can be made");
    let socket = Url::Unix(spare.path().join("moves.sock"));
    let here = Host::secure_at(allow(&one, &[]), &socket);
    here.run("guest", &[]).expect("nothing against it");
    let refused = error(here.migrate("guest", &there.url).0);
    assert!(
        refused.desc.contains("one/ca-cert.pem") && refused.desc.contains("pvmmd cert"),
        "{refused}"
    );
    assert_eq!(here.info("guest").state, GuestState::Running);
    issue(ca.path(), "one");
    here.migrate("guest", &there.url)
        .0
        .expect("now there are some");
    assert_eq!(there.info("guest").state, GuestState::Running);
}
