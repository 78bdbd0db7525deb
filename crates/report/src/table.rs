//! Tables: what a chart shows, for whoever cannot see it or wants the numbers; and the same with every digit, as CSV.

use crate::escape;
use crate::units::Unit;
use std::fmt::Write;

/// A table for people and its comma-separated form for programs, which may have other columns.
#[derive(Default)]
pub struct Table {
    /// Names of columns; the first column heads the rows.
    pub head: Vec<String>,
    /// Rows.
    pub rows: Vec<Vec<Cell>>,
    /// What the rows leave out, if they do.
    pub note: Option<String>,
    /// Rows of comma-separated values, names of columns first.
    pub csv: Csv,
}

/// What stands in a table.
#[derive(Clone, Default)]
pub struct Cell {
    /// For people.
    pub text: String,
    /// Every digit, where the text is rounded.
    pub exact: Option<String>,
}

impl Cell {
    /// Plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Cell { text: text.into(), exact: None }
    }

    /// A number, rounded.
    pub fn number(unit: Unit, x: f64) -> Self {
        Cell { text: unit.show(x), exact: Some(number(x)) }
    }

    /// A number that may be unknown.
    pub fn maybe(unit: Unit, x: Option<f64>) -> Self {
        x.map_or_else(|| Cell::text("–"), |x| Cell::number(unit, x))
    }

    /// A number that was reckoned.
    pub fn reckoned(self) -> Self {
        Cell { text: format!("≈ {}", self.text), ..self }
    }
}

/// A number with every digit, as JSON writes it; a whole one without a point, one that is none as nothing.
pub fn number(x: f64) -> String {
    let text = serde_json::Number::from_f64(x).map_or_else(String::new, |number| number.to_string());
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

/// Comma-separated values (RFC 4180, with plain line ends). What is unknown is empty.
#[derive(Clone, Default)]
pub struct Csv {
    text: String,
}

impl Csv {
    /// With these names of columns.
    pub fn new(columns: &[&str]) -> Self {
        let mut csv = Csv::default();
        csv.push(columns);
        csv
    }

    /// One more row.
    pub fn push<S: AsRef<str>>(&mut self, fields: &[S]) {
        for (i, field) in fields.iter().map(AsRef::as_ref).enumerate() {
            if i > 0 {
                self.text.push(',');
            }
            if field.contains([',', '"', '\n', '\r']) {
                _ = write!(self.text, "\"{}\"", field.replace('"', "\"\""));
            } else {
                self.text.push_str(field);
            }
        }
        self.text.push('\n');
    }

    /// All rows.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl Table {
    /// The table and its CSV. `name` is that of the file to save.
    pub fn html(&self, title: &str, name: &str) -> String {
        let mut html = String::from("<details open class=\"numbers\"><summary>Table</summary><div class=\"scroll\"><table>");
        _ = write!(html, "<caption>{}</caption><thead><tr>", escape::html(title));
        for column in &self.head {
            _ = write!(html, "<th scope=\"col\">{}</th>", escape::html(column));
        }
        html.push_str("</tr></thead><tbody>");
        self.rows.iter().for_each(|row| html.push_str(&row_html(row)));
        html.push_str("</tbody></table></div>");
        if let Some(note) = &self.note {
            _ = write!(html, "<p class=\"note\">{}</p>", escape::html(note));
        }
        html.push_str("</details>");
        _ = write!(
            html,
            "<details class=\"csv\"><summary>CSV</summary><p><a download=\"{name}.csv\" href=\"data:text/csv;charset=utf-8,{}\">Save as {name}.csv</a></p><pre tabindex=\"0\">{}</pre></details>",
            escape::address(self.csv.text()),
            escape::html(self.csv.text()),
            name = escape::html(name),
        );
        html
    }
}

fn row_html(row: &[Cell]) -> String {
    let mut html = String::from("<tr>");
    for (i, cell) in row.iter().enumerate() {
        let title = cell.exact.as_ref().map_or_else(String::new, |exact| format!(" title=\"{}\"", escape::html(exact)));
        let text = escape::html(&cell.text);
        if i == 0 {
            _ = write!(html, "<th scope=\"row\"{title}>{text}</th>");
        } else {
            _ = write!(html, "<td{title}>{text}</td>");
        }
    }
    html + "</tr>"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_with_commas_and_quotes_are_quoted() {
        let mut csv = Csv::new(&["a", "b"]);
        csv.push(&["{\"x\": 1, \"y\": 2}", "plain"]);
        assert_eq!(csv.text(), "a,b\n\"{\"\"x\"\": 1, \"\"y\"\": 2}\",plain\n");
    }

    #[test]
    fn numbers_keep_every_digit() {
        assert_eq!(number(0.001_062_838), "0.001062838");
        assert_eq!(number(5.288039872457747e-07), "5.288039872457747e-7");
        assert_eq!(number(5.0), "5");
        assert_eq!(number(f64::NAN), "");
    }
}
