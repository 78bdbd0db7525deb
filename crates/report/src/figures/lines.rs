//! One number of several things over an axis: a line for each; where the axis has a single value, a row for each.

use crate::chart::{Axis, Chart, Kind, Point, Role, Series};
use crate::table::{Cell, Table};
use std::collections::BTreeSet;

/// A thing with its numbers.
pub struct Line {
    /// Its name.
    pub label: String,
    /// Its colour and marker.
    pub slot: usize,
    /// Its numbers.
    pub points: Vec<Point>,
}

/// Lines over an axis.
pub struct Lines {
    /// Across.
    pub x: Axis,
    /// What the numbers are.
    pub y: Axis,
    /// The things, those without a number too.
    pub lines: Vec<Line>,
    /// Whether a single value across is worth a line.
    pub always_lines: bool,
}

impl Lines {
    /// All values across, ascending.
    pub fn places(&self) -> Vec<f64> {
        let all = self.lines.iter().flat_map(|line| line.points.iter().map(|point| point.x.to_bits()));
        all.collect::<BTreeSet<u64>>().into_iter().map(f64::from_bits).collect()
    }

    /// A row for every value across, a column for every thing; of more rows than fit, evenly spaced ones.
    pub fn table(&self, most_rows: usize) -> Table {
        let places = self.places();
        let shown = thinned(&places, most_rows);
        let row = |&x: &f64| {
            let cell =
                |line: &Line| line.points.iter().find(|point| point.x == x).map_or_else(|| Cell::text("–"), |point| self.cell(point));
            let mut row = vec![Cell::number(self.x.unit, x)];
            row.extend(self.lines.iter().map(cell));
            row
        };
        let mut head = vec![self.x.label.clone()];
        head.extend(self.lines.iter().map(|line| line.label.clone()));
        let note =
            (shown.len() < places.len()).then(|| format!("{} of {} rows, evenly spaced; the CSV has all.", shown.len(), places.len()));
        Table { head, rows: shown.iter().map(row).collect(), note, ..Table::default() }
    }

    fn cell(&self, point: &Point) -> Cell {
        let cell = Cell::number(self.y.unit, point.y);
        if point.reckoned { cell.reckoned() } else { cell }
    }

    /// The chart. Numbers that an axis cannot hold stay in the table.
    pub fn chart(self) -> Chart {
        let single = self.places().len() == 1 && !self.always_lines;
        let drawn = |line: &Line| line.points.iter().any(|point| self.y.holds(point.y));
        let lines: Vec<&Line> = self.lines.iter().filter(|line| drawn(line)).collect();
        let series = |(row, line): (usize, &&Line)| {
            let held = line.points.iter().filter(|point| self.x.holds(point.x) && self.y.holds(point.y));
            let turned = |point: &Point| if single { Point { x: point.y, y: row as f64, ..*point } } else { *point };
            Series { label: line.label.clone(), role: Role::Measured, slot: line.slot, points: held.map(turned).collect() }
        };
        let series = lines.iter().enumerate().map(series).collect();
        if single {
            let names = lines.iter().map(|line| line.label.clone()).collect();
            return Chart { kind: Kind::Rows, x: self.y, y: Axis::rows(names), series };
        }
        Chart { kind: Kind::Lines, x: self.x, y: self.y, series }
    }
}

/// At most so many of them, evenly spaced, first and last included.
fn thinned(places: &[f64], most: usize) -> Vec<f64> {
    if places.len() <= most {
        return places.to_vec();
    }
    (0..most).map(|i| places[i * (places.len() - 1) / (most - 1)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Unit;

    fn lines(points: Vec<Point>) -> Lines {
        let line = Line { label: "a".into(), slot: 0, points };
        let (x, y) = (Axis::logarithmic("tokens", Unit::Tokens), Axis::logarithmic("s", Unit::Seconds));
        Lines { x, y, lines: vec![line], always_lines: false }
    }

    #[test]
    fn a_number_without_a_logarithm_is_in_the_table_only() {
        let lines = lines(vec![Point::new(1.0, 0.0), Point::new(2.0, 1.0)]);
        assert_eq!(lines.table(9).rows.len(), 2);
        assert_eq!(lines.chart().series[0].points, [Point::new(2.0, 1.0)]);
    }

    #[test]
    fn a_single_value_across_becomes_rows() {
        let chart = lines(vec![Point::new(4096.0, 0.5)]).chart();
        assert_eq!((chart.kind, chart.series[0].points[0]), (Kind::Rows, Point::new(0.5, 0.0)));
        assert_eq!(chart.y.names, ["a"]);
    }

    #[test]
    fn long_tables_keep_their_ends_and_say_what_they_leave_out() {
        let table = lines((1..=101).map(|i| Point::new(f64::from(i), 1.0)).collect()).table(11);
        let first: Vec<&str> = table.rows.iter().map(|row| row[0].text.as_str()).collect();
        assert_eq!(first, ["1", "11", "21", "31", "41", "51", "61", "71", "81", "91", "101"]);
        assert!(table.note.unwrap().starts_with("11 of 101 rows"));
    }
}
