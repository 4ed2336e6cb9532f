//! Our hostPorts beside those of the reference plugins `bridge` and `portmap`,
//! with the same input: who is answered, and as whom the pod sees it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::flows::Echo;
use crate::harness::{
    Container, List, NODE4, NODE6, OUT4, OUT6, Pod, Site, Space, Stand, in_parallel, report,
    wait_until,
};

/// How long an answer may take. Who gets none costs all of it.
const PATIENCE: Duration = Duration::from_secs(2);
const POD_PORT: u16 = 80;
const SUBNETS: [&str; 2] = ["10.77.0.0/24", "fd77::/64"];
const OTHER_SUBNETS: [&str; 2] = ["10.78.0.0/24", "fd78::/64"];

/// An address that a client asks for, or that a mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Address {
    Uplink,
    Gateway,
    Loopback,
    /// Nobody's, but the outside host would send it to the node.
    Foreign,
}

impl Address {
    const ALL: [Self; 4] = [Self::Uplink, Self::Gateway, Self::Loopback, Self::Foreign];

    fn of(self, family: Family) -> IpAddr {
        let (v4, v6): (IpAddr, IpAddr) = match self {
            Self::Uplink => (NODE4, NODE6),
            Self::Gateway => (
                Ipv4Addr::new(10, 77, 0, 1).into(),
                Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1).into(),
            ),
            Self::Loopback => (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()),
            Self::Foreign => (
                Ipv4Addr::new(192, 0, 2, 99).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0x99, 0, 0, 0, 0, 0x99).into(),
            ),
        };
        match family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Gateway => "gateway",
            Self::Loopback => "loopback",
            Self::Foreign => "foreign",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Protocol {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Client {
    Outside,
    Host,
    OtherPod,
    Itself,
    OtherNetwork,
}

impl Client {
    const ALL: [Self; 5] = [
        Self::Outside,
        Self::Host,
        Self::OtherPod,
        Self::Itself,
        Self::OtherNetwork,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Outside => "outside",
            Self::Host => "host",
            Self::OtherPod => "another pod",
            Self::Itself => "the pod itself",
            Self::OtherNetwork => "pod of another network",
        }
    }

    /// Loopback addresses are the host's only for itself, and the outside host
    /// has no route to the pods' gateway.
    fn can_ask_for(self, target: Address) -> bool {
        match target {
            Address::Loopback => self == Self::Host,
            Address::Gateway => self != Self::Outside,
            Address::Uplink | Address::Foreign => true,
        }
    }
}

/// What is asked of each node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Question {
    client: Client,
    target: Address,
    /// The mapping's; none is an empty one.
    host_ip: Option<Address>,
    family: Family,
    protocol: Protocol,
}

impl Question {
    fn all() -> Vec<Self> {
        let mut all = vec![];
        for client in Client::ALL {
            for target in Address::ALL.into_iter().filter(|t| client.can_ask_for(*t)) {
                for host_ip in host_ips() {
                    for family in [Family::V4, Family::V6] {
                        for protocol in [Protocol::Tcp, Protocol::Udp] {
                            all.push(Self {
                                client,
                                target,
                                host_ip,
                                family,
                                protocol,
                            });
                        }
                    }
                }
            }
        }
        all
    }

    fn to(&self) -> SocketAddr {
        (
            self.target.of(self.family),
            host_port(self.host_ip, self.family),
        )
            .into()
    }

    /// The client's address as the pod saw it, of whom got an answer.
    fn ask(&self, space: &Space) -> Option<IpAddr> {
        space.in_netns(|| match self.protocol {
            Protocol::Tcp => ask_tcp(self.to()),
            Protocol::Udp => ask_udp(self.to()),
        })
    }
}

fn host_ips() -> impl Iterator<Item = Option<Address>> {
    std::iter::once(None).chain(Address::ALL.map(Some))
}

/// Each hostIP has a port of its own: one pod has all mappings.
fn host_port(host_ip: Option<Address>, family: Family) -> u16 {
    match host_ip {
        None => 8000,
        Some(address) => 8001 + 2 * address as u16 + family as u16,
    }
}

fn ask_tcp(to: SocketAddr) -> Option<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.parse().ok()
}

fn ask_udp(to: SocketAddr) -> Option<IpAddr> {
    const TRIES: u32 = 4;
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let client = UdpSocket::bind((any, 0)).unwrap();
    client.set_read_timeout(Some(PATIENCE / TRIES)).unwrap();
    // Only what comes from there is an answer.
    client.connect(to).ok()?;
    let mut buffer = [0; 64];
    let length = (0..TRIES).find_map(|_| {
        client.send(b"who am I?").ok()?;
        client.recv(&mut buffer).ok()
    })?;
    std::str::from_utf8(&buffer[..length]).ok()?.parse().ok()
}

/// `snat` and `masqAll`.
type Mode = (bool, bool);
const MODES: [Mode; 4] = [(true, false), (true, true), (false, false), (false, true)];

/// As whom the pod saw the client; nothing without an answer.
type Answers = BTreeMap<Question, Option<String>>;

/// A node with a pod that has all mappings, and with all clients.
struct Bed {
    stand: Stand,
    server: Pod,
    near: Pod,
    far: Pod,
}

impl Bed {
    fn make(stand: Stand, (snat, masq_all): Mode) -> Self {
        let site = stand.site();
        for family in [Family::V4, Family::V6] {
            let [foreign, node] = [Address::Foreign, Address::Uplink].map(|a| a.of(family));
            site.outside
                .exec(&format!("ip route add {foreign} via {node}"));
        }
        let pods = stand.list("pods", &SUBNETS, &[("snat", snat), ("masqAll", masq_all)]);
        let far = stand.list("far", &OTHER_SUBNETS, &[]);
        let add = |name: &str, list: &List, mappings: Vec<Value>| {
            let space = site.space(name);
            let container = Container::new(&space, name, "eth0");
            let container = container.with("portMappings", mappings.into());
            Pod::join(space, container, list.clone())
        };
        let bed = Self {
            server: add("server", &pods, mappings()),
            near: add("near", &pods, vec![]),
            far: add("far", &far, vec![]),
            stand,
        };
        wait_until("all addresses may be used", || {
            let shown = bed.site().node.exec("ip -6 address show tentative");
            shown.trim().is_empty().then_some(())
        });
        bed
    }

    fn site(&self) -> &Site {
        self.stand.site()
    }

    fn space(&self, client: Client) -> &Space {
        match client {
            Client::Outside => &self.site().outside,
            Client::Host => &self.site().node,
            Client::OtherPod => &self.near,
            Client::Itself => &self.server,
            Client::OtherNetwork => &self.far,
        }
    }

    fn addresses(&self, client: Client) -> Vec<IpAddr> {
        match client {
            Client::Outside => vec![OUT4, OUT6],
            // All its addresses have names of their own.
            Client::Host => vec![],
            Client::OtherPod => self.near.addresses(),
            Client::Itself => self.server.addresses(),
            Client::OtherNetwork => self.far.addresses(),
        }
    }

    /// The same on every node.
    fn name(&self, question: &Question, source: IpAddr) -> String {
        if self.addresses(question.client).contains(&source) {
            return "client".to_owned();
        }
        let mut known = Address::ALL.into_iter();
        let known = known.find(|address| address.of(question.family) == source);
        known.map_or_else(|| source.to_string(), |address| address.name().to_owned())
    }

    fn answers(&self) -> Answers {
        let every_address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, POD_PORT));
        let _tcp = Echo::tcp_whoami(&self.server, every_address);
        let _udp = Echo::udp_whoami(&self.server, every_address);
        let answers = in_parallel(40, Question::all(), |question| {
            let source = question.ask(self.space(question.client));
            (question, source.map(|source| self.name(&question, source)))
        });
        answers.into_iter().collect()
    }

    fn finish(self) {
        let Self {
            stand,
            server,
            near,
            far,
        } = self;
        for pod in [server, near, far] {
            pod.del();
        }
        stand.finish();
    }
}

fn mappings() -> Vec<Value> {
    let mut all = vec![];
    for host_ip in host_ips() {
        for protocol in ["tcp", "udp"] {
            let mapping = |family, address: String| {
                json!({
                    "hostPort": host_port(host_ip, family), "containerPort": POD_PORT,
                    "protocol": protocol, "hostIP": address,
                })
            };
            match host_ip {
                None => all.push(mapping(Family::V4, String::new())),
                Some(address) => all.extend(
                    [Family::V4, Family::V6]
                        .map(|family| mapping(family, address.of(family).to_string())),
                ),
            }
        }
    }
    all
}

/// By node: ours and portmap's, in each mode.
type Results = BTreeMap<(bool, Mode), Answers>;

#[test]
fn whom_portmap_serves_we_serve() {
    let beds = MODES
        .iter()
        .flat_map(|mode| [(true, *mode), (false, *mode)]);
    let beds: Vec<_> = beds.collect();
    let results: Results = in_parallel(4, beds, |(ours, mode)| {
        let stand = if ours {
            Stand::sluice()
        } else {
            Stand::portmap()
        };
        let bed = Bed::make(stand, mode);
        let answers = bed.answers();
        bed.finish();
        ((ours, mode), answers)
    })
    .into_iter()
    .collect();
    if let Some(file) = report("hostports.md") {
        fs::write(file, markdown(&results)).unwrap();
    }
    for mode in MODES {
        for (question, theirs) in &results[&(false, mode)] {
            let ours = &results[&(true, mode)][question];
            let plain = (question.client, question.target, question.host_ip);
            assert!(
                theirs.is_some() || plain != (Client::Outside, Address::Uplink, None),
                "portmap's node serves nobody: {question:?}"
            );
            assert!(
                ours.is_some() || theirs.is_none(),
                "snat and masqAll {mode:?}: {question:?} is answered by portmap's pod only"
            );
        }
    }
}

/// A row of the table: what was asked, and what became of it in each mode.
#[derive(Debug, Clone)]
struct Row {
    fields: [String; 5],
    cells: [String; 4],
}

impl Row {
    const HEADS: [&str; 9] = [
        "client",
        "asks for",
        "hostIP",
        "family",
        "protocol",
        "`snat`",
        "`snat`, `masqAll`",
        "neither",
        "`masqAll`",
    ];

    fn new(question: &Question, results: &Results) -> Self {
        let host_ip = question.host_ip.map_or("unset", Address::name);
        let family = match question.family {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        };
        let protocol = match question.protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        let asked = question.target.name();
        Self {
            fields: [question.client.name(), asked, host_ip, family, protocol].map(str::to_owned),
            cells: MODES.map(|mode| {
                let seen = |ours| results[&(ours, mode)][question].as_deref().unwrap_or("–");
                match (seen(true), seen(false)) {
                    (ours, theirs) if ours == theirs => ours.to_owned(),
                    (ours, theirs) => format!("{ours} / {theirs}"),
                }
            }),
        }
    }

    fn is_answered(&self) -> bool {
        self.cells.iter().any(|cell| cell != "–")
    }

    fn differs_only_in(&self, field: usize, other: &Self) -> bool {
        let mut others = (0..self.fields.len()).filter(|index| *index != field);
        self.cells == other.cells && others.all(|index| self.fields[index] == other.fields[index])
    }
}

/// The rows that differ in one field only become one.
fn merged(rows: Vec<Row>, field: usize) -> Vec<Row> {
    let mut merged: Vec<Row> = vec![];
    for row in rows {
        match merged.iter_mut().find(|m| m.differs_only_in(field, &row)) {
            Some(found) => {
                found.fields[field].push_str(", ");
                found.fields[field].push_str(&row.fields[field]);
            }
            None => merged.push(row),
        }
    }
    merged
}

/// What somebody answered, in as few rows as that can be said; then every row.
fn markdown(results: &Results) -> String {
    let rows: Vec<_> = Question::all()
        .iter()
        .map(|question| Row::new(question, results))
        .collect();
    let mut answered = rows.clone();
    answered.retain(Row::is_answered);
    for field in (0..5).rev() {
        answered = merged(answered, field);
    }
    table(&answered) + "\nEvery question:\n\n" + &table(&rows)
}

fn table(rows: &[Row]) -> String {
    let line = |cells: &[&str]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&Row::HEADS) + &line(&["---"; Row::HEADS.len()]);
    for row in rows {
        let cells = row.fields.iter().chain(&row.cells).map(String::as_str);
        text += &line(&cells.collect::<Vec<_>>());
    }
    text
}
