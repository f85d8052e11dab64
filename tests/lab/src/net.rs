//! The wires between emulated hosts.
//!
//! Each lab has two networks, each a bridge with a tap per host: the *control* network, on which the
//! lab reaches the agents, and the *migration* network, which a test may cut or slow down without
//! losing the hosts. Both live in the network namespace of the run (see [`crate::sandbox`]).
//!
//! Bochs takes at most one packet in an emulated millisecond from a tap. So the migration network has
//! several lanes, with a card for each, which the hosts bundle (Linux' bonding, balance-rr): as all lanes
//! have the same pace, packets hardly overtake each other.

use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::error::{start, LabError, Result};
use crate::machine::Card;
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
    /// Second byte of the network's addresses, and fourth of the hardware addresses of its first lane.
    fn number(self) -> u8 {
        match self {
            Wire::Control => 86,
            Wire::Migration => 87,
        }
    }

    /// How many lanes it has. The i440FX has room for five cards, Bochs for four of this kind.
    fn lanes(self) -> u8 {
        match self {
            Wire::Control => 1,
            Wire::Migration => 3,
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
            for lane in 0..wire.lanes() {
                let bridge = net.bridge(wire, lane);
                ip(&["link", "add", &bridge, "type", "bridge"])?;
                ip(&["link", "set", &bridge, "mtu", &mtu.to_string(), "up"])?;
            }
        }
        let own = format!("{}/24", net.address(Wire::Control, 1));
        ip(&["addr", "add", &own, "dev", &net.bridge(Wire::Control, 0)])?;
        Ok(net)
    }

    /// Makes the taps of one host (2 to 254) on one network, and returns the cards to plug into them.
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn plug(&self, wire: Wire, host: u8) -> Result<Vec<Card>> {
        let mut cards = Vec::new();
        for lane in 0..wire.lanes() {
            let tap = self.tap(wire, lane, host);
            let mac = format!(
                "52:54:00:{:02x}:{:02x}:{host:02x}",
                wire.number() + lane,
                self.lab
            );
            ip(&["tuntap", "add", &tap, "mode", "tap"])?;
            ip(&["link", "set", &tap, "mtu", &self.mtu.to_string(), "up"])?;
            ip(&["link", "set", &tap, "master", &self.bridge(wire, lane)])?;
            if wire == Wire::Control {
                // The lab knocks while the host boots; asking for the address of a host that isn't up
                // yet would make it wait for seconds after each try.
                let (address, bridge) = (self.address(wire, host), self.bridge(wire, lane));
                let address = address.to_string();
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
            cards.push(Card { tap, mac });
        }
        Ok(cards)
    }

    /// Removes a host's taps.
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn unplug(&self, wire: Wire, host: u8) -> Result<()> {
        (0..wire.lanes()).try_for_each(|lane| ip(&["link", "del", &self.tap(wire, lane, host)]))
    }

    /// The taps of a host on the migration network, each with its bridge.
    fn migration_taps(&self, host: u8) -> impl Iterator<Item = (String, String)> + '_ {
        let wire = Wire::Migration;
        (0..wire.lanes()).map(move |lane| (self.tap(wire, lane, host), self.bridge(wire, lane)))
    }

    /// Cuts a host off the migration network: from now on its packets go nowhere, as if somebody had
    /// pulled the cable at the far end of the switch (its own link stays up).
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn cut(&self, host: u8) -> Result<()> {
        self.migration_taps(host)
            .try_for_each(|(tap, _)| ip(&["link", "set", &tap, "nomaster"]))
    }

    /// Undoes [`Net::cut`] and [`Net::stall`].
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn heal(&self, host: u8) -> Result<()> {
        self.migration_taps(host).try_for_each(|(tap, bridge)| {
            // Fails when no limit was set, which is as good.
            let _ = run("tc", &["qdisc", "del", "dev", &tap, "root"]);
            ip(&["link", "set", &tap, "master", &bridge])
        })
    }

    /// Lets so little through to a host on the migration network (a packet a second and lane) that a
    /// connection neither breaks nor gets anywhere.
    ///
    /// # Errors
    /// [`LabError::Command`].
    pub fn stall(&self, host: u8) -> Result<()> {
        self.migration_taps(host).try_for_each(|(tap, _)| {
            run(
                "tc",
                &[
                    "qdisc", "replace", "dev", &tap, "root", "tbf", "rate", "12kbit", "burst",
                    "2048", "limit", "65536",
                ],
            )
        })
    }

    /// A host's address on a network; host 1 of the control network is the lab itself.
    pub fn address(&self, wire: Wire, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, wire.number(), self.lab, host)
    }

    fn bridge(&self, wire: Wire, lane: u8) -> String {
        format!("{}{}l{lane}", wire.letter(), self.lab)
    }

    fn tap(&self, wire: Wire, lane: u8, host: u8) -> String {
        format!("{}{}l{lane}h{host}", wire.letter(), self.lab)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for wire in [Wire::Control, Wire::Migration] {
            for lane in 0..wire.lanes() {
                // The namespace takes it along at the end of the run anyway.
                let _ = ip(&["link", "del", &self.bridge(wire, lane)]);
            }
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
