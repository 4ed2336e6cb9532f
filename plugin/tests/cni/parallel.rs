//! Operations on one attachment at the same time.

use std::fs;
use std::thread;

use serde_json::json;

use crate::node::{Answer, Node};
use crate::space::Space;

/// IPAM plugins may give a second ADD of an attachment the addresses of the
/// first: the loser's undoing would take them from the winner.
#[test]
fn of_parallel_adds_one_wins_and_the_others_never_ask_ipam() {
    let (node, pod) = (Node::new(), Space::new("pod"));
    let log = node.file("log");
    let script = format!(
        "echo $CNI_COMMAND >> {}; sleep 0.05; exec ${{CNI_PATH%%:*}}/host-local",
        log.display()
    );
    node.script("slow-host-local", &script);
    let mut network = node.network();
    network["ipam"]["type"] = "slow-host-local".into();
    for _ in 0..20 {
        let answers = thread::scope(|scope| {
            let adds = [(); 4].map(|()| scope.spawn(|| node.add(&pod, &network)));
            adds.map(|add| add.join().unwrap())
        });
        let (won, lost): (Vec<Answer>, _) = answers.into_iter().partition(|a| a.success);
        for answer in lost {
            answer.fails(103, "eth0");
        }
        let [winner] = won.try_into().unwrap();
        let result = winner.ok();
        assert_eq!(fs::read_to_string(&log).unwrap(), "ADD\n");
        let addresses = node.reserved();
        let given: Vec<_> = addresses.iter().zip(["24", "64"]).collect();
        for (ip, (address, length)) in result["ips"].as_array().unwrap().iter().zip(given) {
            assert_eq!(ip["address"], json!(format!("{address}/{length}")));
        }
        node.check(&pod, &network, &result).ok();
        node.del(&network).ok();
        node.assert_clean(Some(&pod));
        fs::remove_file(&log).unwrap();
    }
}
