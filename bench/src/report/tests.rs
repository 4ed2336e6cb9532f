use super::*;

const JSON: &str = include_str!("golden/report.json");
const MARKDOWN: &str = include_str!("golden/report.md");

fn report() -> Report {
    serde_json::from_str(JSON).unwrap()
}

#[test]
fn the_tables_are_as_they_were_approved() {
    let text = markdown(&report());
    assert!(text == MARKDOWN, "golden/report.md should be:\n{text}");
}

#[test]
fn json_comes_back_as_it_went() {
    let text = serde_json::to_string(&report()).unwrap();
    let again: Report = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), text);
    let before: serde_json::Value = serde_json::from_str(JSON).unwrap();
    let after: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(before, after);
}

#[test]
fn the_page_needs_nothing_else_and_has_a_plot_of_each_case() {
    let page = html(&report()).unwrap();
    assert_eq!(page.matches("<svg").count(), 3, "goals and two cases");
    for reference in ["src=", "href=", "url(", "@import"] {
        assert!(!page.contains(reference), "{reference}");
    }
    assert!(page.contains("not &lt;installed&gt;"));
    assert!(page.contains("QUICK"), "a quick run is called one");
    assert!(page.contains("received, Mpps (more is better)"));
    assert!(page.contains("ADD p50, ms (less is better)"));
}

#[test]
fn near_is_below_200_ns_before_and_after() {
    let distance = |cores| {
        let sample = Sample {
            round: 0,
            cores,
            values: Values::new(),
            pools: BTreeMap::new(),
        };
        sample.distance()
    };
    assert_eq!(distance([199.0, 100.0]), Distance::Near);
    assert_eq!(distance([200.0, 700.0]), Distance::Far);
    assert_eq!(distance([199.0, 200.0]), Distance::Both);
    assert_eq!(distance([300.0, 100.0]), Distance::Both);
}
