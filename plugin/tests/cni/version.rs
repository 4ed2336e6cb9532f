//! VERSION, and what is no operation at all.

use serde_json::{Value, json};

use crate::node::Node;

#[test]
fn version_needs_nothing_else() {
    let node = Node::new();
    let output = node.run(&[("CNI_COMMAND", "VERSION")], br#"{"cniVersion": "0.4.0"}"#);
    assert!(output.status.success());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        answer,
        json!({
            "cniVersion": "0.4.0",
            "supportedVersions": ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        })
    );
}

#[test]
fn errors_are_json_whatever_comes_in() {
    let node = Node::new();
    for (env, stdin, code) in [
        (vec![("CNI_COMMAND", "DANCE")], "{}", 4),
        (vec![("CNI_COMMAND", "ADD")], "{}", 4),
        (
            vec![
                ("CNI_COMMAND", "DEL"),
                ("CNI_CONTAINERID", "c"),
                ("CNI_IFNAME", "eth0"),
            ],
            "{",
            6,
        ),
    ] {
        let output = node.run(&env, stdin.as_bytes());
        assert_eq!(output.status.code(), Some(1));
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            (&answer["code"], &answer["cniVersion"]),
            (&json!(code), &json!("1.1.0"))
        );
        assert!(answer["msg"].is_string());
    }
}

#[test]
fn run_by_hand_it_says_what_it_is() {
    let node = Node::new();
    let output = node.run(&[], b"");
    assert!(output.status.success() && output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.lines().count() == 1 && text.contains("a CNI plugin"),
        "{text}"
    );
}
