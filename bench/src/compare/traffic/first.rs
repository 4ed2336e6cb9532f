//! What the first packet of a connection takes.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use hdrhistogram::Histogram;

use super::echo::micros;
use super::{Measure, Talk, Values};
use crate::topology::TopologyError;

/// Connections of one measurement.
const CONNECTIONS: u32 = 100;

/// New UDP flows from the client, one after the other: from the datagram's
/// `send` to its arrival in the server's socket. `next_port` is the client's
/// port of the first of them; no port is used twice on a node, so that each
/// is new.
///
/// # Errors
/// The sockets are refused, or a datagram does not arrive.
pub(crate) fn first_packets(talk: &Talk<'_>, next_port: u16) -> Result<Values, TopologyError> {
    let server = talk.udp_server()?;
    let failed = |error| TopologyError::refused("reach", talk.target.to_string(), error);
    server
        .set_read_timeout(Some(super::HANDSHAKE))
        .map_err(failed)?;
    let ports = (next_port..=u16::MAX).take(CONNECTIONS as usize);
    let times = talk.client.run(|| measure(talk.target, &server, ports))?;
    let times = times.map_err(failed)?;
    Ok(Values::from([
        (Measure::P50, micros(times.value_at_quantile(0.5))),
        (Measure::P99, micros(times.value_at_quantile(0.99))),
    ]))
}

fn measure(
    target: SocketAddr,
    server: &UdpSocket,
    ports: impl Iterator<Item = u16>,
) -> io::Result<Histogram<u64>> {
    let mut times = Histogram::new_with_max(60_000_000_000, 3).map_err(io::Error::other)?;
    for port in ports {
        let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
        let said = port.to_be_bytes();
        let mut heard = [0; 3];
        let start = Instant::now();
        client.send_to(&said, target)?;
        let length = server.recv(&mut heard)?;
        let time = start.elapsed();
        if heard[..length] != said {
            return Err(io::Error::other("somebody else's datagram came"));
        }
        times.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
    Ok(times)
}
