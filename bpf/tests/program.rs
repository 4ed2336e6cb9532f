//! Both programs in the running kernel, driven by BPF_PROG_TEST_RUN, which
//! gives the program frames of the loopback interface. Needs root.

use aya::maps::{Array, HashMap, Map};
use aya::programs::{TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};

const SLOTS: u16 = 257;
const LOOPBACK: u32 = 1;
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

fn load(program: &str) -> Ebpf {
    let mut object = EbpfLoader::new()
        .map_max_entries(sluice_bpf::PORTS, SLOTS.into())
        .map_max_entries(sluice_bpf::SOCKETS, SLOTS.into())
        .map_max_entries(sluice_bpf::DOORBELL, sluice_bpf::doorbell_words(SLOTS))
        .load(sluice_bpf::OBJECT)
        .expect("load the object (needs root)");
    let xdp: &mut Xdp = object
        .program_mut(program)
        .expect("the object has the program")
        .try_into()
        .expect("it is an XDP program");
    xdp.load().expect("the verifier accepts it");
    object
}

fn run(object: &Ebpf, program: &str) -> u32 {
    let xdp: &Xdp = object.program(program).unwrap().try_into().unwrap();
    let options = TestRunOptions {
        data_in: Some(&[0; 64]),
        ..TestRunOptions::new()
    };
    xdp.test_run(options).expect("run the program").return_value
}

fn set_no_socket_action(object: &mut Ebpf, action: u32) {
    let map = object.map_mut(sluice_bpf::NO_SOCKET_ACTION).unwrap();
    let mut array = Array::<_, u32>::try_from(map).unwrap();
    array.set(0, action, 0).unwrap();
}

fn doorbell(object: &mut Ebpf) -> Vec<u64> {
    let map = object.map_mut(sluice_bpf::DOORBELL).unwrap();
    let array = Array::<_, u64>::try_from(map).unwrap();
    array.iter().map(Result::unwrap).collect()
}

#[test]
fn the_maps_have_the_sizes_asked_for() {
    let object = load(sluice_bpf::PROGRAM_SINGLE);
    let entries = |name| match object.map(name).expect("the object has the map") {
        Map::HashMap(data) | Map::XskMap(data) | Map::Array(data) => {
            data.info().expect("ask the kernel").max_entries()
        }
        other => panic!("{name} is {other:?}"),
    };
    assert_eq!(entries(sluice_bpf::PORTS), 257);
    assert_eq!(entries(sluice_bpf::SOCKETS), 257);
    assert_eq!(entries(sluice_bpf::DOORBELL), 5);
    assert_eq!(entries(sluice_bpf::NO_SOCKET_ACTION), 1);
}

#[test]
fn an_unknown_interface_gets_the_no_socket_action_and_rings_nothing() {
    for program in [sluice_bpf::PROGRAM_FRAGS, sluice_bpf::PROGRAM_SINGLE] {
        let mut object = load(program);
        for action in [XDP_DROP, XDP_PASS] {
            set_no_socket_action(&mut object, action);
            assert_eq!(run(&object, program), action, "{program}");
        }
        assert_eq!(doorbell(&mut object), [0; 5], "{program}");
    }
}

#[test]
fn a_port_without_a_socket_rings_its_bell_and_gets_the_action() {
    for program in [sluice_bpf::PROGRAM_FRAGS, sluice_bpf::PROGRAM_SINGLE] {
        let mut object = load(program);
        set_no_socket_action(&mut object, XDP_DROP);
        for (slot, bells) in [
            (0, [1, 0, 0, 0, 0]),
            (70, [1, 1 << 6, 0, 0, 0]),
            (70, [1, 1 << 6, 0, 0, 0]),
            (256, [1, 1 << 6, 0, 0, 1]),
        ] {
            let map = object.map_mut(sluice_bpf::PORTS).unwrap();
            let mut ports = HashMap::<_, u32, u32>::try_from(map).unwrap();
            ports.insert(LOOPBACK, slot, 0).unwrap();
            assert_eq!(run(&object, program), XDP_DROP, "{program}, slot {slot}");
            assert_eq!(doorbell(&mut object), bells, "{program}, slot {slot}");
        }
    }
}
