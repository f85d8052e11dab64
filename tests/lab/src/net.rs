//! The wires between emulated hosts.
//!
//! Each lab has two networks, each a bridge with a tap per host: the *control* network, on which the
//! lab reaches the agents, and the *migration* network, which a test may cut or slow down without
//! losing the hosts. Both live in the network namespace of the run (see [`crate::sandbox`]).

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{start, LabError, Result};
use crate::sandbox;

/// The two networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Between the lab and the agents.
    Control,
    /// Between the hosts.
    Migration,
}

impl Wire {
    /// Second byte of the network's addresses, and fourth of its hardware addresses.
    fn number(self) -> u8 {
        match self {
            Wire::Control => 86,
            Wire::Migration => 87,
        }
    }

    fn letter(self) -> char {
        match self {
            Wire::Control => 'c',
            Wire::Migration => 'm',
        }
    }
}

/// The networks of one lab.
#[derive(Debug)]
pub struct Net {
    lab: u8,
    mtu: u32,
}

/// Labs of one process share a network namespace: each has its own number.
static NEXT_LAB: AtomicU8 = AtomicU8::new(1);

impl Net {
    /// Makes both networks.
    ///
    /// # Errors
    /// [`LabError::NotInSandbox`] outside the lab's namespaces; [`LabError::Command`].
    pub fn new(mtu: u32) -> Result<Self> {
        if !sandbox::is_inside() {
            return Err(LabError::NotInSandbox);
        }
        let net = Net {
            lab: NEXT_LAB.fetch_add(1, Ordering::Relaxed),
            mtu,
        };
        for wire in [Wire::Control, Wire::Migration] {
            let bridge = net.bridge(wire);
            ip(&["link", "add", &bridge, "type", "bridge"])?;
            ip(&["link", "set", &bridge, "mtu", &mtu.to_string(), "up"])?;
        }
        let own = format!("{}/24", net.address(Wire::Control, 1));
        ip(&["addr", "add", &own, "dev", &net.bridge(Wire::Control)])?;
        Ok(net)
    }

    /// Makes the tap of one host (2 to 254) on one network and returns its name.
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn plug(&self, wire: Wire, host: u8) -> Result<String> {
        let tap = self.tap(wire, host);
        ip(&["tuntap", "add", &tap, "mode", "tap"])?;
        ip(&["link", "set", &tap, "mtu", &self.mtu.to_string(), "up"])?;
        ip(&["link", "set", &tap, "master", &self.bridge(wire)])?;
        if wire == Wire::Control {
            // The lab knocks while the host boots; asking for the address of a host that isn't up yet
            // would make it wait for seconds after each try.
            let (address, mac) = (self.address(wire, host).to_string(), self.mac(wire, host));
            let bridge = self.bridge(wire);
            ip(&[
                "neigh",
                "replace",
                &address,
                "lladdr",
                &mac,
                "dev",
                &bridge,
                "nud",
                "permanent",
            ])?;
        }
        Ok(tap)
    }

    /// Removes a host's tap.
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn unplug(&self, wire: Wire, host: u8) -> Result<()> {
        ip(&["link", "del", &self.tap(wire, host)])
    }

    /// Cuts a host off the migration network: from now on its packets go nowhere, as if somebody had
    /// pulled the cable at the far end of the switch (its own link stays up).
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn cut(&self, host: u8) -> Result<()> {
        ip(&["link", "set", &self.tap(Wire::Migration, host), "nomaster"])
    }

    /// Undoes [`Net::cut`] and [`Net::stall`].
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn heal(&self, host: u8) -> Result<()> {
        let tap = self.tap(Wire::Migration, host);
        // Fails when no limit was set, which is as good.
        let _ = run("tc", &["qdisc", "del", "dev", &tap, "root"]);
        ip(&["link", "set", &tap, "master", &self.bridge(Wire::Migration)])
    }

    /// Lets so little through to a host on the migration network (about one packet a second) that a
    /// connection neither breaks nor gets anywhere.
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn stall(&self, host: u8) -> Result<()> {
        let tap = self.tap(Wire::Migration, host);
        run(
            "tc",
            &[
                "qdisc", "replace", "dev", &tap, "root", "tbf", "rate", "12kbit", "burst", "2048",
                "limit", "65536",
            ],
        )
    }

    /// A host's address on a network; host 1 of the control network is the lab itself.
    pub fn address(&self, wire: Wire, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, wire.number(), self.lab, host)
    }

    /// The hardware address that a host's card must have.
    pub fn mac(&self, wire: Wire, host: u8) -> String {
        format!("52:54:00:{:02x}:{:02x}:{host:02x}", wire.number(), self.lab)
    }

    fn bridge(&self, wire: Wire) -> String {
        format!("{}{}", wire.letter(), self.lab)
    }

    fn tap(&self, wire: Wire, host: u8) -> String {
        format!("{}{}h{host}", wire.letter(), self.lab)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for wire in [Wire::Control, Wire::Migration] {
            // The namespace takes it along at the end of the run anyway.
            let _ = ip(&["link", "del", &self.bridge(wire)]);
        }
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let out = Command::new(program)
        .args(arguments)
        .output()
        .map_err(start(program))?;
    if out.status.success() {
        return Ok(());
    }
    Err(LabError::Network {
        command: format!("{program} {}", arguments.join(" ")),
        message: String::from_utf8_lossy(&out.stderr).trim().to_owned(),
    })
}
