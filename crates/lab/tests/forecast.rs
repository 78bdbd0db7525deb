//! `forecast`: windows along time, scales of train, and files that are not what they should be.

mod common;

use common::{all, folder, open, refusal, rows};
use regard_lab::task::{Example, Inputs, Split, Target, Targets, Task};

/// A table of a date, a line and a wave.
fn table(count: usize) -> (String, Vec<[f64; 2]>) {
    let values: Vec<[f64; 2]> = (0..count).map(|at| [at as f64, ((at * at) % 17) as f64]).collect();
    let row = |(at, [line, wave]): (usize, &[f64; 2])| format!("day {at},{line},{wave}\n");
    (format!("date,line,wave\n{}", values.iter().enumerate().map(row).collect::<String>()), values)
}

fn asked(example: &Example) -> &[f32] {
    match &example.target {
        Target::Values(values) => values,
        _ => panic!("values were expected"),
    }
}

/// Mean and deviation of a column.
fn scale(values: &[[f64; 2]], column: usize) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().map(|row| row[column]).sum::<f64>() / count;
    (mean, (values.iter().map(|row| (row[column] - mean).powi(2)).sum::<f64>() / count).sqrt())
}

#[test]
fn windows_follow_time_and_targets_stay_in_their_part() {
    let (text, values) = table(100);
    let folder = folder(&[("a.csv", text.as_bytes())]);
    let task = open(folder.path(), "{name: forecast, file: a.csv, columns: [wave, line], context: 8, horizon: 3}");
    let facts = task.facts();
    assert_eq!((facts.inputs, facts.targets), (Inputs::Rows { width: 2 }, Targets::Values(6)));
    // 70, 10 and 20 rows; the first part has no rows before it.
    assert_eq!(facts.sizes, [Some(70 - 8 - 3 + 1), Some(10 - 3 + 1), Some(20 - 3 + 1)]);
    let scales = [scale(&values[..70], 1), scale(&values[..70], 0)];
    let scaled = |at: usize, column: usize| (values[at][1 - column] - scales[column].0) / scales[column].1;
    for (split, first) in [(Split::Train, 8), (Split::Validation, 70), (Split::Test, 80)] {
        for (index, found) in all(&*task, split).iter().enumerate() {
            let now = first + index;
            for (place, value) in rows(found).iter().enumerate() {
                assert!((f64::from(*value) - scaled(now - 8 + place / 2, place % 2)).abs() < 1e-5, "{split:?} {index} {place}");
            }
            let (silent, last) = asked(found).split_at(7 * 6);
            assert!(silent.iter().all(|value| value.is_nan()) && last.len() == 6);
            for (place, value) in last.iter().enumerate() {
                assert!((f64::from(*value) - scaled(now + place / 2, place % 2)).abs() < 1e-5, "{split:?} {index} {place}");
            }
        }
    }
}

/// Squares of everything that is asked, over how much is asked.
fn mean_square(task: &dyn Task) -> f64 {
    let asked: Vec<f64> =
        all(task, Split::Test).iter().flat_map(|found| asked(found).to_vec()).filter(|value| !value.is_nan()).map(f64::from).collect();
    asked.iter().map(|value| value * value).sum::<f64>() / asked.len() as f64
}

#[test]
fn the_floor_is_the_error_of_the_mean() {
    let (text, _) = table(60);
    let folder = folder(&[("a.csv", text.as_bytes())]);
    for (horizon, context) in [(1, 4), (3, 4), (6, 4), (12, 9)] {
        let keys = format!("name: forecast, file: a.csv, columns: [line, wave], context: {context}, horizon: {horizon}");
        for task in [open(folder.path(), &format!("{{{keys}}}")), open(folder.path(), &format!("{{{keys}, target: [wave]}}"))] {
            let (found, due) = (task.facts().floor.expect("it is known"), mean_square(&*task));
            assert!((found - due).abs() < 1e-6 * due, "horizon {horizon}: {found}, {due}");
        }
    }
}

#[test]
fn a_column_that_never_changes_is_shifted() {
    let text: String = std::iter::once("a,b\n".to_owned()).chain((0..50).map(|at| format!("7,{at}\n"))).collect();
    let folder = folder(&[("a.csv", text.as_bytes())]);
    let task = open(folder.path(), "{name: forecast, file: a.csv, context: 4, horizon: 1}");
    assert!(all(&*task, Split::Test).iter().all(|found| rows(found).iter().step_by(2).all(|value| *value == 0.0)));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let (text, _) = table(100);
    let folder = folder(&[
        ("a.csv", text.as_bytes()),
        ("gap.csv", b"x,y\n1,2\n3,\n"),
        ("word.csv", b"x,y\n1,2\n3,n/a\n"),
        ("nan.csv", b"x,y\n1,2\n3,NaN\n"),
        ("short.csv", b"x,y\n1,2\n"),
        ("latin.csv", b"x,y\n1,2\n1,\xe9\n"),
    ]);
    for (keys, message) in [
        ("file: a.csv", "a.csv: line 2, column date: \"day 0\" is not a number"),
        ("file: a.csv, columns: [lime]", "a.csv: line 1: there is no column \"lime\", did you mean \"line\"?; there are date, line, wave"),
        ("file: a.csv, columns: []", "task.columns: names no column"),
        ("file: a.csv, columns: [line], target: [wave]", "task.target: is column wave, which is not among columns"),
        ("file: a.csv, columns: [line], horizon: 0", "task.horizon: is 0; it lies between 1 and 2796202"),
        ("file: a.csv, columns: [line]", "a.csv: file: 70 rows to learn from are too few for 120 of a context and a horizon"),
        ("file: gap.csv", "gap.csv: line 3, column y: \"\" is not a number"),
        ("file: word.csv", "word.csv: line 3, column y: \"n/a\" is not a number"),
        ("file: nan.csv", "nan.csv: line 3, column y: \"NaN\" is not a number"),
        ("file: short.csv", "short.csv: file: 0 rows to learn from are too few for 120 of a context and a horizon"),
        (
            "file: latin.csv",
            "latin.csv: line 3, column y: is not UTF-8: byte 0xe9 is its byte 1; convert the file, such as with iconv -f latin1 -t utf-8",
        ),
        (
            "file: a.csv, splits: [0.9, 0.2, 0]",
            "task.splits: is [0.9, 0.2, 0.0]; shares of train (above 0), validation and test sum to 1, such as [0.8, 0.1, 0.1]",
        ),
    ] {
        assert_eq!(refusal(folder.path(), &format!("{{name: forecast, {keys}}}")), message);
    }
}
