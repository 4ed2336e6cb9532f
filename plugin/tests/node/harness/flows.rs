//! Flows whose every byte is compared.

use std::borrow::Cow;
use std::io::{Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};

use super::{PATIENCE, Space, wait_until};

/// Between rounds of a paced flow.
const PACE: Duration = Duration::from_millis(10);

/// Bytes that look random and are the same for the same seed (splitmix64).
pub(crate) struct Pattern(pub(crate) u64);

impl Pattern {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() >> 1).unwrap() % bound
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(count).collect()
    }
}

/// A server that sends back what it gets, until it is dropped.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    /// Where the clients came from.
    peers: Arc<Mutex<Vec<IpAddr>>>,
    stop: Box<dyn Fn() + Send>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// A TCP server in `space` on a port of its own.
    pub(crate) fn tcp(space: &Space, address: IpAddr) -> Self {
        Self::tcp_at(space, (address, 0).into())
    }

    pub(crate) fn tcp_at(space: &Space, address: SocketAddr) -> Self {
        Self::serve_tcp(space, address, send_back)
    }

    /// One that tells its clients where they come from instead.
    pub(crate) fn tcp_whoami(space: &Space, address: SocketAddr) -> Self {
        Self::serve_tcp(space, address, |mut stream| {
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = stream.write_all(peer.to_string().as_bytes());
        })
    }

    fn serve_tcp(space: &Space, address: SocketAddr, serve: fn(TcpStream)) -> Self {
        let listener = space.in_netns(|| TcpListener::bind(address)).unwrap();
        let peers = Arc::<Mutex<Vec<IpAddr>>>::default();
        let seen = peers.clone();
        let handle = listener.try_clone().unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            peers,
            stop: Box::new(move || {
                socket::shutdown(handle.as_raw_fd(), socket::Shutdown::Both).unwrap()
            }),
            thread: Some(thread::spawn(move || {
                // Ends when the listener is shut down.
                for stream in listener.incoming().map_while(Result::ok) {
                    seen.lock().unwrap().push(stream.peer_addr().unwrap().ip());
                    thread::spawn(move || serve(stream));
                }
            })),
        }
    }

    /// A UDP server in `space` on a port of its own.
    pub(crate) fn udp(space: &Space, address: IpAddr) -> Self {
        Self::udp_at(space, (address, 0).into())
    }

    pub(crate) fn udp_at(space: &Space, address: SocketAddr) -> Self {
        Self::serve_udp(space, address, |datagram, _| datagram.into())
    }

    /// One that tells its clients where they come from instead.
    pub(crate) fn udp_whoami(space: &Space, address: SocketAddr) -> Self {
        Self::serve_udp(space, address, |_, peer| {
            let peer = peer.ip().to_canonical();
            peer.to_string().into_bytes().into()
        })
    }

    fn serve_udp(
        space: &Space,
        address: SocketAddr,
        answer: for<'a> fn(&'a [u8], SocketAddr) -> Cow<'a, [u8]>,
    ) -> Self {
        let server = space.in_netns(|| UdpSocket::bind(address)).unwrap();
        server
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let peers = Arc::<Mutex<Vec<IpAddr>>>::default();
        let seen = peers.clone();
        let stopped = Arc::<AtomicBool>::default();
        let flag = stopped.clone();
        Self {
            address: server.local_addr().unwrap(),
            peers,
            stop: Box::new(move || flag.store(true, Ordering::Relaxed)),
            thread: Some(thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                while !stopped.load(Ordering::Relaxed) {
                    if let Ok((length, peer)) = server.recv_from(&mut buffer) {
                        seen.lock().unwrap().push(peer.ip());
                        let _ = server.send_to(&answer(&buffer[..length], peer), peer);
                    }
                }
            })),
        }
    }

    /// Where the clients came from since the last time.
    pub(crate) fn take_peers(&self) -> Vec<IpAddr> {
        std::mem::take(&mut *self.peers.lock().unwrap())
    }

    /// Where the clients came from, each once.
    pub(crate) fn peers(&self) -> Vec<IpAddr> {
        let mut peers = self.peers.lock().unwrap().clone();
        peers.sort();
        peers.dedup();
        peers
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        (self.stop)();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            thread::panicking() || matches!(ended, Some(Ok(()))),
            "an echo server panicked"
        );
    }
}

fn send_back(mut stream: TcpStream) {
    let mut buffer = vec![0; 1 << 16];
    // A client that is gone needs no answer.
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Connects from `space`.
#[track_caller]
pub(crate) fn connect(space: &Space, to: SocketAddr) -> TcpStream {
    let stream = space.in_netns(|| TcpStream::connect_timeout(&to, PATIENCE));
    let stream = stream.unwrap_or_else(|error| panic!("{} to {to}: {error}", space.name()));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Connects from `space` and a local address and port.
#[track_caller]
pub(crate) fn connect_from(space: &Space, from: SocketAddr, to: SocketAddr) -> TcpStream {
    let family = match to {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let connected = space.in_netns(|| {
        let client = socket::socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        socket::bind(client.as_raw_fd(), &SockaddrStorage::from(from))?;
        socket::connect(client.as_raw_fd(), &SockaddrStorage::from(to))?;
        nix::Result::Ok(TcpStream::from(client))
    });
    let stream = connected.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Both ends of a connection from `space` to `to`, which leads to `listener`:
/// the client's and the server's.
#[track_caller]
pub(crate) fn connect_ends(
    space: &Space,
    to: SocketAddr,
    listener: &TcpListener,
) -> [TcpStream; 2] {
    let client = connect(space, to);
    let (server, _) = listener.accept().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server.set_write_timeout(Some(PATIENCE)).unwrap();
    [client, server]
}

/// Sends `bytes` bytes to an echo server over a connection, reads them back,
/// and compares them.
#[track_caller]
pub(crate) fn exchange(stream: &TcpStream, bytes: usize, seed: u64) {
    transfer([stream, stream], bytes, seed);
}

/// Writes `bytes` bytes to the first stream, reads them from the second, and
/// compares them.
#[track_caller]
pub(crate) fn transfer([mut from, mut to]: [&TcpStream; 2], bytes: usize, seed: u64) {
    let sent = Pattern(seed).bytes(bytes);
    let mut received = vec![0; bytes];
    thread::scope(|scope| {
        let writer = scope.spawn(|| from.write_all(&sent));
        let read = to.read_exact(&mut received);
        let written = writer.join().unwrap();
        assert!(
            read.is_ok() && written.is_ok(),
            "read: {read:?}, written: {written:?}"
        );
    });
    assert!(sent == received, "the bytes arrived changed");
}

/// A connection from `space` to an echo server, and half a megabyte over it.
#[track_caller]
pub(crate) fn check_tcp(space: &Space, to: SocketAddr) {
    exchange(&connect(space, to), 500_000, u64::from(to.port()));
}

/// A datagram of each of these sizes to an echo server, one at a time; none is lost.
#[track_caller]
pub(crate) fn check_udp(space: &Space, to: SocketAddr, sizes: &[usize]) {
    let client = udp_client(space, to);
    for (seed, size) in (0..).zip(sizes) {
        exchange_datagram(&client, *size, seed);
    }
}

#[track_caller]
pub(crate) fn udp_client(space: &Space, to: SocketAddr) -> UdpSocket {
    let any = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    udp_client_from(space, SocketAddr::new(any, 0), to)
}

/// A socket in `space` with a local address and port, connected.
#[track_caller]
pub(crate) fn udp_client_from(space: &Space, from: SocketAddr, to: SocketAddr) -> UdpSocket {
    let client = space.in_netns(|| {
        let client = UdpSocket::bind(from).unwrap();
        client.connect(to).unwrap();
        client
    });
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client
}

#[track_caller]
pub(crate) fn exchange_datagram(client: &UdpSocket, size: usize, seed: u64) {
    let sent = Pattern(seed).bytes(size);
    let to = client.peer_addr().unwrap();
    let mut received = vec![0; size + 1];
    let length = client.send(&sent).and_then(|_| client.recv(&mut received));
    let length = length.unwrap_or_else(|error| panic!("datagram of {size} to {to}: {error}"));
    assert!(
        sent == received[..length],
        "datagram of {size} to {to} came back changed"
    );
}

/// A verified flow that goes on until it is stopped.
pub(crate) struct Flow {
    name: String,
    stop: Arc<AtomicBool>,
    rounds: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Flow {
    /// TCP in rounds of 64 KiB.
    pub(crate) fn tcp(space: &Space, to: SocketAddr) -> Self {
        let stream = connect(space, to);
        Self::start(between(space, to), move |seed| {
            exchange(&stream, 1 << 16, seed);
        })
    }

    /// The same a hundred times a second: a capture keeps up with that.
    pub(crate) fn paced_tcp(space: &Space, to: SocketAddr) -> Self {
        let stream = connect(space, to);
        Self::start(between(space, to), move |seed| {
            exchange(&stream, 1 << 16, seed);
            thread::sleep(PACE);
        })
    }

    /// From the first end of a connection to the second, which sends nothing
    /// but acknowledgements; at the same pace.
    pub(crate) fn one_way([from, to]: [TcpStream; 2]) -> Self {
        let name = format!("{:?} to {:?}", from.local_addr(), from.peer_addr());
        Self::start(name, move |seed| {
            transfer([&from, &to], 1 << 16, seed);
            thread::sleep(PACE);
        })
    }

    /// UDP, one datagram at a time; a lost one is a failure.
    pub(crate) fn udp(space: &Space, to: SocketAddr) -> Self {
        let client = udp_client(space, to);
        Self::start(between(space, to), move |seed| {
            exchange_datagram(&client, 1 + usize::try_from(seed % 1400).unwrap(), seed);
        })
    }

    fn start(name: String, round: impl Fn(u64) + Send + 'static) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let rounds = Arc::<AtomicUsize>::default();
        let done = rounds.clone();
        let thread = thread::spawn(move || {
            for seed in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                round(seed);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            name,
            stop,
            rounds,
            thread,
        }
    }

    /// How often bytes went there and came back.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.load(Ordering::Relaxed)
    }

    /// Waits until it has got on, and fails if anything was lost or changed.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let before = self.rounds();
        let what = format!("the flow {} goes on after {before} rounds", self.name);
        wait_until(&what, || {
            assert!(!self.thread.is_finished(), "the flow has ended");
            (self.rounds() > before + 1).then_some(())
        });
    }

    /// Ends it, and fails if anything was lost or changed. Returns the rounds.
    #[track_caller]
    pub(crate) fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = self.thread.join() {
            std::panic::resume_unwind(panic);
        }
        self.rounds.load(Ordering::Relaxed)
    }
}

fn between(space: &Space, to: SocketAddr) -> String {
    format!("from {} to {to}", space.name())
}

/// One echo request; fails without a reply.
#[track_caller]
pub(crate) fn ping(space: &Space, to: IpAddr) {
    space.exec(&format!("ping -n -c 1 -W 10 {to}"));
}
