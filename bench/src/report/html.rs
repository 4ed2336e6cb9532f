//! Tables and plots, as one HTML file that needs nothing else.

use std::error::Error;

use plotters::style::RGBColor;

use super::markdown::{
    COMPARISON_HEADS, GOAL_HEADS, arm_heads, arm_rows, comparison_rows, goal_rows, heading,
    problems, setup_rows, title,
};
use super::{Report, plot};

const STYLE: &str = "
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0; font-size: 13px }
th, td { border-bottom: 1px solid #ddd; padding: .3em .7em; text-align: left; vertical-align: top }
th { background: #f2f4f6 }
svg { max-width: 100%; height: auto }
.holds, .stretch { color: #2c8c3c } .missed, .failed { color: #c82828 } .unsure { color: #b06000 }
.quick { background: #ffe9a8; padding: .5em 1em; font-weight: bold }
.dot { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin: 0 .3em 0 1em }
";

/// The whole report.
///
/// # Errors
/// A plot cannot be drawn.
pub(crate) fn html(report: &Report) -> Result<String, Box<dyn Error>> {
    let title = title(&report.setup);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
         <style>{STYLE}</style>\n<h1>sluice-bench compare</h1>\n"
    );
    if report.setup.quick {
        page += &format!("<p class=\"quick\">{title}</p>\n");
    }
    let setup = setup_rows(&report.setup).into_iter();
    page += &table(
        &[],
        &setup
            .map(|(what, value)| vec![what, value])
            .collect::<Vec<_>>(),
    );
    page += "<h2>Goals</h2>\n";
    page += &plot::goals(&report.goals)?.unwrap_or_default();
    page += &table(&GOAL_HEADS.map(str::to_owned), &goal_rows(&report.goals));
    page += &legend();
    for case in &report.cases {
        page += &format!("<h2>{}</h2>\n", escaped(&heading(case)).replace('`', ""));
        page += &plot::samples(case)?.unwrap_or_default();
        page += &table(&arm_heads(case), &arm_rows(case));
        let rows = comparison_rows(case);
        if !rows.is_empty() {
            page += &table(&COMPARISON_HEADS.map(str::to_owned), &rows);
        }
        for problem in problems(case) {
            page += &format!("<p class=\"failed\">{}</p>\n", escaped(&problem));
        }
    }
    page += "</html>\n";
    Ok(page)
}

fn legend() -> String {
    let dot = |RGBColor(r, g, b): RGBColor, what: &str| {
        format!("<span class=\"dot\" style=\"background: rgb({r},{g},{b})\"></span>{what}")
    };
    format!(
        "<h2>Cases</h2>\n<p>Each dot is a sample, each bar a median. The two cores were {} {} {}</p>\n",
        dot(plot::NEAR, "near each other"),
        dot(plot::FAR, "far from each other"),
        dot(plot::CHANGED, "both, during the sample")
    )
}

fn table(heads: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String], tag: &str| {
        let cells: String = cells
            .iter()
            .map(|cell| format!("<{tag}{}>{}</{tag}>", class(cell), escaped(cell)))
            .collect();
        format!("<tr>{cells}</tr>\n")
    };
    let head = match heads {
        [] => String::new(),
        heads => line(heads, "th"),
    };
    let body: String = rows.iter().map(|row| line(row, "td")).collect();
    format!("<table>\n{head}{body}</table>\n")
}

/// Verdicts have colours.
fn class(cell: &str) -> &'static str {
    match cell {
        "holds" | "holds, stretch too" => " class=\"holds\"",
        "missed" => " class=\"missed\"",
        "not sure" => " class=\"unsure\"",
        _ => "",
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
