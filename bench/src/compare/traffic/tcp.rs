//! TCP as fast as it goes.

use std::io::{self, Read, Write};
use std::net::TcpStream;

use super::{Job, Meter, Progress, Talk, Values, is_patience};
use crate::topology::TopologyError;

/// What one system call writes or reads at most: as iperf3.
const BUFFER: usize = 128 * 1024;

/// TCP streams from the client to the server.
///
/// # Errors
/// The sockets are refused, or the server is not reached.
pub(crate) fn streams(talk: &Talk<'_>, count: u16) -> Result<Values, TopologyError> {
    let connections: Vec<_> = (0..count)
        .map(|more| {
            let port = talk.port + more;
            let mut talk = Talk { port, ..*talk };
            // Only the first port is translated.
            if more > 0 {
                talk.target.set_port(port);
            }
            talk.connection()
        })
        .collect::<Result<_, _>>()?;
    let progress = Progress::default();
    let mut jobs: Vec<Job<'_>> = vec![];
    for (client, server) in &connections {
        jobs.push((talk.receiver_cpu, Box::new(|| receive(server, &progress))));
        jobs.push((talk.sender_cpu, Box::new(|| send(client, &progress))));
    }
    Ok(Meter::run(talk, &progress, jobs)?.bytes())
}

fn send(mut stream: &TcpStream, progress: &Progress) -> io::Result<()> {
    let buffer = vec![0x5a; BUFFER];
    while !progress.is_over() {
        match stream.write(&buffer) {
            Ok(length) => progress.sent.add(length as u64),
            Err(error) if is_patience(&error) => {}
            // The receiver was first to see that it is over.
            Err(_) if progress.is_over() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn receive(mut stream: &TcpStream, progress: &Progress) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while !progress.is_over() {
        match stream.read(&mut buffer) {
            Ok(length) => progress.received.add(length as u64),
            Err(error) if is_patience(&error) => {}
            Err(_) if progress.is_over() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
