//! A question of one byte, an answer of one byte, and the next question.

use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::time::Instant;

use hdrhistogram::Histogram;

use super::{Measure, Progress, Talk, Values, is_patience, warm_up};
use crate::cores;
use crate::topology::TopologyError;

/// UDP round trips. One that is lost is asked again after a while, and counts
/// as long as it took.
///
/// # Errors
/// The sockets are refused, or no answer comes.
pub(crate) fn udp_echo(talk: &Talk<'_>) -> Result<Values, TopologyError> {
    let (server, client) = (talk.udp_server()?, talk.udp_client()?);
    let answer = |progress: &Progress| answer_datagrams(&server, progress);
    ask(talk, answer, || {
        let mut buffer = [0; 1];
        loop {
            client.send(&[0x5a])?;
            match client.recv(&mut buffer) {
                Ok(_) => return Ok(()),
                Err(error) if is_patience(&error) => {}
                Err(error) => return Err(error),
            }
        }
    })
}

/// TCP round trips on one connection.
///
/// # Errors
/// As [`udp_echo`].
pub(crate) fn tcp_echo(talk: &Talk<'_>) -> Result<Values, TopologyError> {
    let (client, server) = talk.connection()?;
    let answer = |progress: &Progress| {
        let (mut server, mut buffer) = (&server, [0; 1]);
        while !progress.is_over() {
            match server.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => server.write_all(&buffer)?,
                Err(error) if is_patience(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    ask(talk, answer, || {
        let (mut client, mut buffer) = (&client, [0; 1]);
        client.write_all(&[0x5a])?;
        loop {
            match client.read(&mut buffer) {
                Ok(_) => return Ok(()),
                Err(error) if is_patience(&error) => {}
                Err(error) => return Err(error),
            }
        }
    })
}

fn answer_datagrams(server: &UdpSocket, progress: &Progress) -> io::Result<()> {
    let mut buffer = [0; 64];
    while !progress.is_over() {
        match server.recv_from(&mut buffer) {
            Ok((length, peer)) => {
                server.send_to(&buffer[..length], peer)?;
            }
            Err(error) if is_patience(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Asks for the time of the talk, and returns the round trips' percentiles.
fn ask(
    talk: &Talk<'_>,
    answer: impl FnOnce(&Progress) -> io::Result<()> + Send,
    mut exchange: impl FnMut() -> io::Result<()> + Send,
) -> Result<Values, TopologyError> {
    let progress = Progress::default();
    let failed = |error| TopologyError::refused("measure", talk.target.to_string(), error);
    let (asked, answered) = std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            cores::pin(talk.receiver_cpu)?;
            answer(&progress)
        });
        let asking = scope.spawn(|| {
            let asked = cores::pin(talk.sender_cpu).and_then(|()| round_trips(talk, &mut exchange));
            progress
                .over
                .store(true, std::sync::atomic::Ordering::Relaxed);
            asked
        });
        let panicked = |_| io::Error::other("a thread panicked");
        (
            asking.join().map_err(panicked).flatten(),
            answering.join().map_err(panicked).flatten(),
        )
    });
    let times = asked.map_err(failed)?;
    answered.map_err(failed)?;
    let microseconds = |percent| micros(times.value_at_quantile(percent));
    Ok(Values::from([
        (Measure::P50, microseconds(0.5)),
        (Measure::P99, microseconds(0.99)),
    ]))
}

fn round_trips(
    talk: &Talk<'_>,
    exchange: &mut impl FnMut() -> io::Result<()>,
) -> io::Result<Histogram<u64>> {
    let start = Instant::now();
    while start.elapsed() < warm_up(talk.time) {
        exchange()?;
    }
    // Three digits, up to a minute in nanoseconds.
    let mut times = Histogram::new_with_max(60_000_000_000, 3).map_err(io::Error::other)?;
    let start = Instant::now();
    let mut asked = start;
    while asked - start < talk.time {
        exchange()?;
        let answered = Instant::now();
        let time = u64::try_from((answered - asked).as_nanos()).unwrap_or(u64::MAX);
        times.saturating_record(time);
        asked = answered;
    }
    Ok(times)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "less than a minute in nanoseconds"
)]
pub(super) fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}
