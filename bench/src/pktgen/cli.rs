//! The command line of `sluice-bench pktgen`.

use std::error::Error;
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Subcommand, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::packet::Protocol;
use super::report;
use super::send::{SendBy, SendSpec, send};
use super::sink::{SinkBy, SinkSpec, Watch, receive};
use super::size::Sizes;
use super::trial::{Place, Progress, Trial, netns_path};
use crate::topology::interrupt;

/// Generate packets and count what arrives.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A generator in one namespace and a sink in another, and what was lost.
    Pair(Pair),
    /// A generator alone.
    Send(Send),
    /// A sink alone: for a time, until nothing has come for a while, or until
    /// SIGINT. It says "ready" on stderr when packets may be sent.
    Receive(Receive),
}

#[derive(Debug, clap::Args)]
struct Pair {
    /// The generator's network namespace, by name or path.
    #[arg(long, value_parser = path_of, value_name = "NETNS")]
    from: PathBuf,
    /// The sink's network namespace, by name or path.
    #[arg(long, value_parser = path_of, value_name = "NETNS")]
    into: PathBuf,
    #[command(flatten)]
    traffic: Traffic,
    /// By what to receive.
    #[arg(long, value_enum, default_value = "xsk")]
    sink: SinkBy,
    /// The sink's interface.
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// The port that arrives there, where something between translates it.
    #[arg(long, value_parser = value_parser!(u16).range(1..))]
    sink_port: Option<u16>,
    /// The generator's CPU.
    #[arg(long)]
    send_cpu: Option<u16>,
    /// The sink's CPU.
    #[arg(long)]
    sink_cpu: Option<u16>,
    /// Seconds to wait for what is still on its way.
    #[arg(long, default_value_t = 0.5, value_parser = positive)]
    drain: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Send {
    /// The network namespace, by name or path; the own one without.
    #[arg(long, value_parser = path_of)]
    netns: Option<PathBuf>,
    #[command(flatten)]
    traffic: Traffic,
    /// The CPU to run on.
    #[arg(long)]
    cpu: Option<u16>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Receive {
    /// The network namespace, by name or path; the own one without.
    #[arg(long, value_parser = path_of)]
    netns: Option<PathBuf>,
    /// The interface.
    #[arg(long, default_value = "eth0")]
    interface: String,
    /// The destination port of what is counted.
    #[arg(long, default_value_t = PORT, value_parser = value_parser!(u16).range(1..))]
    port: u16,
    /// How many flows the generator sends.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..))]
    flows: u16,
    /// By what to receive.
    #[arg(long, value_enum, default_value = "xsk")]
    by: SinkBy,
    /// End after so many seconds.
    #[arg(long, default_value_t = 3600.0, value_parser = positive)]
    seconds: f64,
    /// End when nothing has come for so many seconds, once something has.
    #[arg(long, default_value_t = 2.0, value_parser = positive)]
    idle: f64,
    /// The CPU to run on.
    #[arg(long)]
    cpu: Option<u16>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Where packets go if nothing is said.
const PORT: u16 = 9000;

#[derive(Debug, clap::Args)]
struct Traffic {
    /// Where to: ADDRESS:PORT, [ADDRESS]:PORT for IPv6.
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddr,
    /// Frame size in bytes with FCS, so that 64 is 60 and FCS; or imix.
    #[arg(long, default_value = "64")]
    size: Sizes,
    /// Packets a second; 1.5k and 2M are understood; max for as many as possible.
    #[arg(long, default_value = "max", value_parser = rate_of)]
    rate: Rate,
    /// How many flows, told apart by their source ports.
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..))]
    flows: u16,
    /// What the packets look like.
    #[arg(long, value_enum, default_value = "udp")]
    protocol: Protocol,
    /// By what to send.
    #[arg(long, value_enum, default_value = "xsk")]
    by: SendBy,
    /// For how many seconds.
    #[arg(long, default_value_t = 10.0, value_parser = positive)]
    seconds: f64,
    /// How many packets at most.
    #[arg(long)]
    count: Option<u64>,
}

/// A rate as it was asked for.
#[derive(Debug, Clone, Copy)]
struct Rate(Option<f64>);

impl Traffic {
    fn spec(&self) -> SendSpec {
        SendSpec {
            to: self.to,
            sizes: self.size,
            protocol: self.protocol,
            flows: self.flows,
            rate: self.rate.0,
            seconds: self.seconds,
            count: self.count,
            by: self.by,
        }
    }
}

/// Runs the subcommand.
pub(crate) fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    match &args.command {
        Command::Pair(pair) => run_pair(pair),
        Command::Send(send) => run_send(send),
        Command::Receive(receive) => run_receive(receive),
    }
}

fn run_pair(args: &Pair) -> Result<(), Box<dyn Error>> {
    let spec = args.traffic.spec();
    let trial = Trial {
        from: Place {
            netns: Some(args.from.clone()),
            cpu: args.send_cpu,
        },
        to: Place {
            netns: Some(args.into.clone()),
            cpu: args.sink_cpu,
        },
        sink: SinkSpec {
            interface: args.interface.clone(),
            port: args.sink_port.unwrap_or_else(|| spec.to.port()),
            flows: spec.flows,
            by: args.sink,
        },
        drain: args.drain,
        send: spec,
    };
    let bar = bar(trial.send.seconds);
    let outcome = trial.run(|progress| show(&bar, progress));
    bar.finish_and_clear();
    let outcome = outcome?;
    if args.json {
        #[derive(Serialize)]
        struct All<'a> {
            trial: &'a Trial,
            #[serde(flatten)]
            outcome: &'a super::Outcome,
        }
        let (trial, outcome) = (&trial, &outcome);
        print_json(&All { trial, outcome })
    } else {
        print!("{}", report::outcome(&outcome));
        Ok(())
    }
}

fn run_send(args: &Send) -> Result<(), Box<dyn Error>> {
    let place = Place {
        netns: args.netns.clone(),
        cpu: args.cpu,
    };
    let spec = args.traffic.spec();
    let progress = Progress::default();
    let done = AtomicBool::new(false);
    let bar = bar(spec.seconds);
    let sent = thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
                show(&bar, &progress);
            }
        });
        let sent = place.run(|| send(&spec, &progress.sent));
        done.store(true, Ordering::Relaxed);
        sent
    });
    bar.finish_and_clear();
    let sent = sent?;
    if args.json {
        print_json(&sent)
    } else {
        print!("{}", report::sent(&sent));
        Ok(())
    }
}

fn run_receive(args: &Receive) -> Result<(), Box<dyn Error>> {
    let place = Place {
        netns: args.netns.clone(),
        cpu: args.cpu,
    };
    let spec = SinkSpec {
        interface: args.interface.clone(),
        port: args.port,
        flows: args.flows,
        by: args.by,
    };
    interrupt::watch()?;
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let received = thread::scope(|scope| {
        scope.spawn(|| stop_when_idle(args, &count, &stop));
        let received = place.run(|| {
            let mut watch = Watch {
                ready: &mut || eprintln!("ready"),
                stop: &stop,
                progress: &count,
            };
            receive(&spec, &mut watch)
        });
        stop.store(true, Ordering::Relaxed);
        received
    })?;
    if args.json {
        print_json(&received)
    } else {
        print!("{}", report::received(&received));
        Ok(())
    }
}

/// Sets `stop` when the time is over, nothing has come for a while, or SIGINT
/// came.
fn stop_when_idle(args: &Receive, count: &AtomicU64, stop: &AtomicBool) {
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    let mut last = (0, Instant::now());
    while Instant::now() < end && !stop.load(Ordering::Relaxed) && !interrupt::is_set() {
        thread::sleep(Duration::from_millis(20));
        let seen = count.load(Ordering::Relaxed);
        if seen != last.0 {
            last = (seen, Instant::now());
        } else if seen > 0 && last.1.elapsed().as_secs_f64() > args.idle {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
}

fn print_json(value: &impl Serialize) -> Result<(), Box<dyn Error>> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// A bar over the time of a trial; none where nobody looks.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "tenths of seconds of a command line"
)]
fn bar(seconds: f64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{elapsed:>4} {bar:30} {msg}");
    ProgressBar::new((seconds * 10.0) as u64).with_style(style.expect("a valid template"))
}

fn show(bar: &ProgressBar, progress: &Progress) {
    let sent = progress.sent.load(Ordering::Relaxed);
    let received = progress.received.load(Ordering::Relaxed);
    bar.set_message(format!("{sent} sent, {received} received"));
    bar.inc(1);
}

fn path_of(text: &str) -> Result<PathBuf, String> {
    let path = netns_path(text);
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} does not exist", path.display()))
    }
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(value) if value > 0.0 && value <= 1e6 => Ok(value),
        _ => Err("a number of seconds above 0, at most 1000000".into()),
    }
}

fn rate_of(text: &str) -> Result<Rate, String> {
    if text == "max" {
        return Ok(Rate(None));
    }
    let (number, factor) = match text.strip_suffix(['k', 'M']) {
        Some(number) if text.ends_with('k') => (number, 1e3),
        Some(number) => (number, 1e6),
        None => (text, 1.0),
    };
    match number.parse::<f64>() {
        Ok(value) if value * factor >= 0.001 && value * factor <= 1e9 => {
            Ok(Rate(Some(value * factor)))
        }
        _ => Err("packets a second from 0.001 to 1000M, or max".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_with_their_units() {
        let rate = |text| rate_of(text).map(|rate| rate.0);
        assert_eq!(rate("max"), Ok(None));
        assert_eq!(rate("1000"), Ok(Some(1000.0)));
        assert_eq!(rate("1.5k"), Ok(Some(1500.0)));
        assert_eq!(rate("2M"), Ok(Some(2e6)));
        for text in ["", "0", "-1", "nan", "inf", "2G", "Mk"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }
}
