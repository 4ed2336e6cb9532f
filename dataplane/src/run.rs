//! `sluiced run`: the daemon's life.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::unistd::Uid;
use sluice_dataplane::cpus;
use sluice_dataplane::node::{Node, NodeError};
use sluice_dataplane::server::Server;
use tracing::Level;

use crate::cli::{LogLevel, RunArgs};
use crate::conflist::{self, Conflist};
use crate::descriptors;
use crate::readiness;
use crate::signals::Signals;

/// How often the daemon looks whether its worker is alive and its host port there,
/// and for pods whose interfaces are gone.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Serves until a signal asks to stop. Returning is the clean exit.
pub(crate) fn run(arguments: RunArgs) -> Result<(), Box<dyn Error>> {
    log_to_stderr(arguments.log_level);
    if !Uid::effective().is_root() {
        return Err("run it as root: it needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and more".into());
    }
    let conflist = conflist::read(&arguments.settings)?;
    for note in conflist.notes() {
        tracing::warn!("{note}");
    }
    let settings = conflist.settings.clone();
    if let Some(note) = cpus::shortage(settings.workers, &settings.cpus) {
        tracing::warn!("{note}");
    }
    descriptors::reserve(settings.max_ports, settings.workers)?;
    let signals = Signals::block()?;
    // First: its lock on the folder keeps a second daemon from touching the
    // first one's pins and host port. Clients may connect and wait.
    let mut server = Server::bind(&settings.socket())?;
    server.watch(signals.as_fd())?;
    let mut node = Node::start(settings, &arguments.without)?;
    take_over_limits(&conflist, &mut node);
    for watch in node.watches() {
        server.watch(watch)?;
    }
    tracing::info!("ready");
    if let Err(error) = readiness::announce() {
        tracing::warn!(%error, "could not tell NOTIFY_SOCKET that this is ready");
    }
    let mut next_look = Instant::now() + HEARTBEAT;
    loop {
        if let Some(signal) = signals.pending()? {
            tracing::info!(signal, attached = node.attached(), "stopping");
            return Ok(());
        }
        if !node.is_alive() {
            return Err("the worker is gone; its panic is above".into());
        }
        let wait = HEARTBEAT.min(node.patience());
        server.turn(wait, |request| node.handle(request))?;
        if let Err(error) = node.mend_rules() {
            tracing::warn!(%error, "could not put the host's netfilter rules back");
        }
        if let Err(error) = node.follow_addresses() {
            tracing::warn!(%error, "hostPorts may not count on the node's new addresses");
        }
        if let Err(error) = node.follow_uplink() {
            tracing::warn!(%error, "answers by the uplink may go astray");
        }
        if Instant::now() >= next_look {
            match node.check_host_port() {
                Err(error @ NodeError::NoHostPort) => return Err(error.into()),
                Err(error) => tracing::warn!(%error, "could not look for the host port"),
                Ok(()) => {}
            }
            node.tell_mapped();
            if let Err(error) = node.forget_all_gone() {
                tracing::warn!(%error, "could not look for pods that are gone");
            }
            next_look = Instant::now() + HEARTBEAT;
        }
    }
}

/// A plugin `bandwidth` behind ours has no effect; its limits shall have.
fn take_over_limits(conflist: &Conflist, node: &mut Node) {
    match conflist.bandwidth() {
        Ok(None) => {}
        Ok(Some(bandwidth)) => {
            tracing::info!(
                network = bandwidth.network,
                "the limits of the plugin bandwidth are those of pods, whatever they ask for, \
                 unless the object of sluice has limits"
            );
            node.limit_network(bandwidth);
        }
        Err(error) => tracing::warn!(
            error,
            "the limits of the plugin bandwidth are not taken over, and pods attached without them"
        ),
    }
}

fn log_to_stderr(level: LogLevel) {
    tracing_subscriber::fmt()
        .with_max_level(Level::from(level))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
}
