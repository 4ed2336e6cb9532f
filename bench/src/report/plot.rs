//! Plots, as SVG.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::markdown::{number, placement};
use super::{ArmReport, CaseReport, Distance, GoalRow, Scope};
use crate::compare::Better;

/// Colours of samples, by how far the cores were from each other.
pub(super) const NEAR: RGBColor = RGBColor(31, 119, 180);
pub(super) const FAR: RGBColor = RGBColor(214, 95, 14);
pub(super) const CHANGED: RGBColor = RGBColor(130, 130, 130);
const MEDIAN: RGBColor = RGBColor(222, 232, 240);
const HELD: RGBColor = RGBColor(44, 140, 60);
const MISSED: RGBColor = RGBColor(200, 40, 40);
const GOAL: RGBColor = RGBColor(20, 20, 20);

const WIDTH: u32 = 1000;
const ROW: u32 = 34;
/// Title, axis and its description.
const AROUND: u32 = 110;
const FONT: &str = "sans-serif";

type Drawing<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The interval of each measured ratio that has a goal, beside the goal.
/// Nothing if nothing was measured.
pub(super) fn goals(goals: &[GoalRow]) -> Result<Option<String>, Box<dyn Error>> {
    let rows: Vec<_> = goals
        .iter()
        .filter(|goal| goal.against.is_some())
        .filter_map(|goal| Some((goal, goal.measured?.all)))
        .collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let count = rows.len();
    let ends = rows
        .iter()
        .flat_map(|(goal, all)| [all.low, all.high, goal.goal]);
    let (least, most) = ends.fold((1.0_f64, 1.0_f64), |(low, high), end| {
        (low.min(end), high.max(end))
    });
    drawn(count, |area| {
        let mut chart = ChartBuilder::on(area)
            .caption(
                "ratio of sluice to the other, with its 95 % interval",
                (FONT, 20),
            )
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(480)
            .build_cartesian_2d(
                ((least / 1.3)..(most * 1.3)).log_scale(),
                (0..count).into_segmented(),
            )?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(count)
            .y_label_formatter(&|row| label_of(row, count, |row| goal_label(rows[row].0)))
            .x_label_formatter(&|ratio| number(*ratio))
            .x_desc("ratio, logarithmic; |: the goal; green: the interval's bad end reaches it")
            .label_style((FONT, 13))
            .draw()?;
        for (row, (goal, all)) in rows.iter().enumerate() {
            let at = |ratio: f64| (ratio, SegmentValue::CenterOf(count - 1 - row));
            let reached = match goal.measure.better() {
                Better::Higher => all.low >= goal.goal,
                Better::Lower => all.high <= goal.goal,
            };
            let colour = if reached { HELD } else { MISSED };
            let line = [at(all.low), at(all.high)];
            chart.draw_series([PathElement::new(line, colour.stroke_width(3))])?;
            chart.draw_series([Circle::new(at(all.value), 5, colour.filled())])?;
            let tick = |(x, y): (i32, i32)| [(x, y - 10), (x, y + 10)];
            chart.draw_series([EmptyElement::at(at(goal.goal))
                + PathElement::new(tick((0, 0)), GOAL.stroke_width(2))])?;
        }
        Ok(())
    })
    .map(Some)
}

fn goal_label(goal: &GoalRow) -> String {
    let scope = match goal.scope {
        Scope::Same => "same",
        Scope::Best => "best",
    };
    let against = goal.against.as_deref().unwrap_or_default();
    format!("{}, to {against} ({scope})", goal.figure)
}

/// Every sample of a case as a dot, and the medians as bars. Nothing without
/// samples.
pub(super) fn samples(case: &CaseReport) -> Result<Option<String>, Box<dyn Error>> {
    let arms: Vec<_> = case
        .arms
        .iter()
        .filter(|arm| arm.medians.contains_key(&case.plotted))
        .collect();
    let values = |arm: &ArmReport| -> Vec<(f64, Distance)> {
        let samples = arm.samples.iter();
        samples
            .filter_map(|sample| Some((*sample.values.get(&case.plotted)?, sample.distance())))
            .collect()
    };
    let most = arms
        .iter()
        .flat_map(|arm| values(arm))
        .map(|(value, _)| value);
    let Some(most) = most.reduce(f64::max) else {
        return Ok(None);
    };
    let count = arms.len();
    drawn(count, |area| {
        let (name, unit) = (case.plotted.name(), case.plotted.unit());
        let better = match case.plotted.better() {
            Better::Higher => "more is better",
            Better::Lower => "less is better",
        };
        let mut chart = ChartBuilder::on(area)
            .caption(&case.title, (FONT, 20))
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(300)
            .build_cartesian_2d(0.0..most * 1.05, (0..count).into_segmented())?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(count)
            .y_label_formatter(&|row| {
                label_of(row, count, |row| {
                    let arm = arms[row];
                    format!("{} ({})", arm.label, placement(arm.placement))
                })
            })
            .x_label_formatter(&|value| number(*value))
            .x_desc(format!("{name}, {unit} ({better})"))
            .label_style((FONT, 13))
            .draw()?;
        for (row, arm) in arms.iter().enumerate() {
            let place = count - 1 - row;
            let median = arm.medians.get(&case.plotted).copied().unwrap_or_default();
            let mut bar = Rectangle::new(
                [
                    (0.0, SegmentValue::Exact(place)),
                    (median, SegmentValue::Exact(place + 1)),
                ],
                MEDIAN.filled(),
            );
            bar.set_margin(5, 5, 0, 0);
            chart.draw_series([bar])?;
            let dots = values(arm).into_iter().map(|(value, distance)| {
                let colour = match distance {
                    Distance::Near => NEAR,
                    Distance::Far => FAR,
                    Distance::Both => CHANGED,
                };
                let at = (value, SegmentValue::CenterOf(place));
                Circle::new(at, 4, colour.mix(0.7).filled())
            });
            chart.draw_series(dots)?;
        }
        Ok(())
    })
    .map(Some)
}

/// Labels go from the top down, the axis from the bottom up.
fn label_of(row: &SegmentValue<usize>, count: usize, label: impl Fn(usize) -> String) -> String {
    match row {
        SegmentValue::CenterOf(row) if *row < count => label(count - 1 - row),
        _ => String::new(),
    }
}

fn drawn(
    rows: usize,
    draw: impl FnOnce(&Drawing<'_>) -> Result<(), Box<dyn Error>>,
) -> Result<String, Box<dyn Error>> {
    let height = AROUND + ROW * u32::try_from(rows)?;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        draw(&area)?;
        area.present()?;
    }
    Ok(svg)
}
