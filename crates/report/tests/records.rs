//! What is taken, what is refused and with which words, and that the page says what the record says.

use regard_report::schema::SCHEMAS;
use regard_report::{Contents, Record, Refusal, page};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The text of a file of the repository.
fn text(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).expect("the file is there")
}

fn made_up(name: &str) -> String {
    text(&format!("crates/report/tests/records/{name}"))
}

fn read(name: &str, text: &str) -> Record {
    Record::read(name, text).unwrap_or_else(|refusal| panic!("{refusal}"))
}

/// What a record says after `change` to it.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> Result<Record, Refusal> {
    let mut value: Value = serde_json::from_str(&made_up(name)).unwrap();
    change(&mut value);
    Record::read(name, &value.to_string())
}

#[track_caller]
fn refused(name: &str, change: impl FnOnce(&mut Value), message: &str) {
    assert_eq!(changed(name, change).unwrap_err().to_string(), message);
}

#[test]
fn every_benchmark_that_is_committed_is_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/records");
    let mut taken = 0;
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|ending| ending == "json")) {
        let text = fs::read_to_string(&path).unwrap();
        let schema = serde_json::from_str::<Value>(&text).unwrap()["schema"].as_str().unwrap().to_owned();
        let found = Record::read("record", &text);
        if SCHEMAS.contains(&schema.as_str()) {
            taken += 1;
            assert_eq!(found.unwrap_or_else(|refusal| panic!("{}: {refusal}", path.display())).schema(), schema);
        } else {
            assert_eq!(found, Err(Refusal::Version { file: "record".into(), found: schema }));
        }
    }
    assert!(taken >= 5, "{taken} records");
}

#[test]
fn every_record_that_is_named_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let of = |folder: &str| fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let pages = [of("."), of("docs"), of("crates/report/tests/browser")].concat();
    let mut named = 0;
    for page in pages.iter().filter(|path| path.extension().is_some_and(|ending| ending == "md" || ending == "sh")) {
        let text = fs::read_to_string(page).unwrap();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.');
        for name in words.filter(|word| word.starts_with("20") && word.ends_with(".json")) {
            named += 1;
            assert!(root.join("bench/records").join(name).is_file(), "{} names {name}", page.display());
        }
    }
    assert!(named >= 20, "{named} records are named");
}

#[test]
fn what_is_written_is_read_again() {
    for name in ["sweep.json", "compare.json", "run-exact.json", "hostile.json", "compression.json"] {
        let record = read(name, &made_up(name));
        let written = serde_json::to_string(&record.contents).unwrap();
        assert!(written.starts_with(&format!(r#"{{"schema":"{}","#, record.schema())), "{}", &written[..80]);
        assert_eq!(read(name, &written), record);
    }
}

#[test]
fn other_versions_are_refused_with_both_named() {
    refused(
        "sweep.json",
        |record| record["schema"] = json!("regard/bench/2"),
        r#"sweep.json: schema: found "regard/bench/2", expected one of regard/bench/1, regard/training-run/1, regard/compare/1, regard/compression/1"#,
    );
    refused(
        "sweep.json",
        |record| _ = record.as_object_mut().unwrap().remove("schema"),
        "sweep.json: schema: found nothing, expected text",
    );
}

#[test]
fn a_wrong_value_is_named_with_its_path() {
    type Change = fn(&mut Value);
    let bench: [(Change, &str); 7] = [
        (|r| r["results"][3]["median_s"] = json!("fast"), r#"results[3].median_s: found "fast", expected a number of at least 0"#),
        (|r| r["results"][3]["median_s"] = json!(-1.0), "results[3].median_s: found -1.0, expected a number of at least 0"),
        (|r| r["results"][0]["length"] = json!(0), "results[0].length: found 0, expected an integer of at least 1"),
        (|r| r["results"][0]["causal"] = json!("yes"), r#"results[0].causal: found "yes", expected true or false"#),
        (|r| r["results"][1] = json!([1, 2]), "results[1]: found a list of 2, expected an object"),
        (
            |r| r["results"][2]["error"]["rel_l2"] = json!({}),
            "results[2].error.rel_l2: found an object with 0 keys, expected a number of at least 0",
        ),
        (|r| r["machine"] = Value::Null, "machine: found nothing, expected an object"),
    ];
    for (change, message) in bench {
        refused("sweep.json", change, &format!("sweep.json: {message}"));
    }
    let compare: [(Change, &str); 4] = [
        (
            |r| r["configurations"][1]["runs"][2]["seed"] = Value::Null,
            "configurations[1].runs[2].seed: found nothing, expected an integer of at least 0",
        ),
        (
            |r| r["configurations"][0]["runs"][0]["tokens_kept"][1] = json!(1.5),
            "configurations[0].runs[0].tokens_kept[1]: found 1.5, expected a number from 0 to 1",
        ),
        (|r| r["task"]["higher_is_better"] = Value::Null, "task.higher_is_better: found nothing, expected true or false"),
        (
            |r| r["configurations"][2]["name"] = json!("exact"),
            r#"configurations[2].name: found "exact", expected a name that no earlier configuration has"#,
        ),
    ];
    for (change, message) in compare {
        refused("compare.json", change, &format!("compare.json: {message}"));
    }
}

#[test]
fn text_that_is_no_json_is_refused_with_its_line() {
    let message = Record::read("half.json", "{\n\"schema\": ").unwrap_err().to_string();
    assert!(message.starts_with("half.json is not JSON: ") && message.contains("line 2"), "{message}");
}

#[test]
fn fields_that_are_not_known_and_numbers_that_are_unknown_are_let_pass() {
    let grown = changed("sweep.json", |record| {
        record["colour"] = json!("blue");
        record["machine"]["moon"] = json!({ "phase": "full" });
        record["results"][0]["joules"] = json!(3);
    });
    assert_eq!(grown.unwrap(), read("sweep.json", &made_up("sweep.json")));
    let unknown = changed("sweep.json", |record| {
        for key in ["gflops", "gbps", "ceiling_fraction", "extra_bytes", "error", "approximation", "min_s"] {
            record["results"].as_array_mut().unwrap().iter_mut().for_each(|result| result[key] = Value::Null);
        }
    });
    let page = page(&[unknown.unwrap()]);
    assert!(page.contains("Time against length") && !page.contains("Memory against length"));
}

/// Rows of every CSV on a page, as lists of fields. The records read here have no quoted field but options.
fn csv_rows(page: &str) -> Vec<Vec<String>> {
    let blocks = page.split("<pre tabindex=\"0\">").skip(1).map(|rest| rest.split("</pre>").next().unwrap());
    let fields = |line: &str| line.replace("&quot;", "\"").split(',').map(str::to_owned).collect();
    blocks.flat_map(|block| block.lines().map(fields).collect::<Vec<_>>()).collect()
}

#[test]
fn ten_numbers_of_the_page_are_those_of_the_record_to_the_last_digit() {
    let name = "bench/records/2026-11-23-bench.json";
    let record: Value = serde_json::from_str(&text(name)).unwrap();
    let page = page(&[read(name, &text(name))]);
    let rows = csv_rows(&page);
    let results = record["results"].as_array().unwrap();
    let checked = [("median_s", 0), ("median_s", 7), ("min_s", 12), ("median_s", 35), ("ceiling_fraction", 3), ("ceiling_fraction", 20)];
    let deep = [("extra_bytes", 5), ("gflops", 9), ("extra_bytes", 30), ("gflops", 31)];
    for (key, i) in checked.into_iter().chain(deep) {
        let result = &results[i];
        let number = result[key].to_string();
        let heads = |row: &&Vec<String>| {
            let length = result["length"].to_string();
            row[0] == result["mechanism"].as_str().unwrap() && row[1] == result["pass"].as_str().unwrap() && row.get(8) == Some(&length)
        };
        let found = rows.iter().filter(|row| row.len() > 9).filter(heads).any(|row| row.contains(&number));
        assert!(found, "results[{i}].{key} = {number} is not on the page");
    }
    // The chart's own data, too.
    let data = page.split("id=\"charts\">").nth(1).unwrap().split("</script>").next().unwrap();
    let charts: Value = serde_json::from_str(data).unwrap();
    let first = &charts[0]["chart"]["series"][0];
    assert_eq!(first["label"], "exact");
    assert_eq!(first["points"][0]["y"], results[0]["median_s"]);
}

#[test]
fn what_is_left_of_texts_is_drawn_for_every_method() {
    let record: Value = serde_json::from_str(&made_up("compression.json")).unwrap();
    let page = page(&[read("compression.json", &made_up("compression.json"))]);
    let rows = csv_rows(&page);
    let data = page.split("id=\"charts\">").nth(1).unwrap().split("</script>").next().unwrap();
    let charts: Value = serde_json::from_str(data).unwrap();
    for (measure, chart) in record["measures"].as_array().unwrap().iter().zip(charts.as_array().unwrap()) {
        let drawn: Vec<&str> =
            chart["chart"]["series"].as_array().unwrap().iter().map(|series| series["label"].as_str().unwrap()).collect();
        assert_eq!(drawn, ["attention", "random"]);
        for left in measure["results"].as_array().unwrap() {
            let row = ["method", "keep", "ratio", "value", "error"].map(|key| left[key].to_string().replace('"', ""));
            assert!(rows.iter().any(|found| found[..] == row), "{row:?} is not on the page");
        }
    }
    refused(
        "compression.json",
        |record| record["measures"][1]["results"][0]["keep"] = 1.5.into(),
        "compression.json: measures[1].results[0].keep: found 1.5, expected a number from 0 to 1",
    );
}

#[test]
fn means_of_seeds_are_means_of_the_record() {
    let record: Value = serde_json::from_str(&made_up("compare.json")).unwrap();
    let page = page(&[read("compare.json", &made_up("compare.json"))]);
    let data = page.split("id=\"charts\">").nth(1).unwrap().split("</script>").next().unwrap();
    let charts: Value = serde_json::from_str(data).unwrap();
    for (i, configuration) in record["configurations"].as_array().unwrap().iter().enumerate() {
        let of_seeds: Vec<f64> = configuration["runs"].as_array().unwrap().iter().map(|run| run["quality"].as_f64().unwrap()).collect();
        let mean = of_seeds.iter().sum::<f64>() / 5.0;
        let spread = of_seeds.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 4.0;
        let mark = &charts[0]["chart"]["series"][2 * i + 1];
        assert_eq!(mark["label"], configuration["name"]);
        assert!((mark["points"][0]["x"].as_f64().unwrap() - mean).abs() < 1e-12, "{mark}");
        let half = mark["points"][0]["x_half"].as_f64().unwrap();
        assert!((half - 2.7764 * (spread / 5.0).sqrt()).abs() < 1e-6, "{mark}");
    }
}

#[test]
fn crossovers_of_a_sweep_are_listed() {
    let page = page(&[read("sweep.json", &made_up("sweep.json"))]);
    assert!(page.contains("<li>hyper becomes faster than exact at about"), "hyper is slower at 1k and faster at 256k");
    assert!(page.contains("<li>local is faster than exact at every length"));
    assert!(page.contains("crossover with exact") && page.contains("exact at the FMA ceiling"));
    assert!(page.contains("≈ "), "reckoned times are marked");
}

#[test]
fn text_of_a_record_does_nothing_but_stand_there() {
    let page = page(&[read("<hostile>.json", &made_up("hostile.json"))]);
    assert!(page.contains("&lt;img src=x onerror=&quot;window.harmed=true&quot;&gt;"));
    assert!(page.contains("&lt;hostile&gt;.json"));
    assert_eq!(page.matches("<script").count(), 3, "the data, the library and the page's own script");
    for harm in ["<img", "<hostile", "'window.harmed", "=\"window.harmed", "<!--"] {
        assert!(!page.contains(harm), "{harm}");
    }
    assert_eq!(page.matches("</script>").count(), 3);
}

#[test]
fn the_page_names_no_address_that_would_be_fetched() {
    let all = ["sweep.json", "compare.json", "run-exact.json", "run-prune.json"].map(|name| read(name, &made_up(name)));
    let page = page(&all);
    for fetching in ["src=", "<link rel=\"stylesheet\"", "@import", "url(", "sourceMappingURL", "fetch(", "XMLHttpRequest"] {
        assert!(!page.contains(fetching), "{fetching}");
    }
    assert!(page.contains("default-src 'none'"));
}

#[test]
fn training_runs_of_one_task_share_their_charts_and_other_machines_do_not() {
    let [a, b] = ["run-exact.json", "run-prune.json"].map(|name| read(name, &made_up(name)));
    let parts = |records: &[Record]| page(records).matches("<section class=\"part\"").count();
    assert_eq!(parts(&[a.clone(), b.clone()]), 1);
    let mut elsewhere = b;
    let Contents::TrainingRun(run) = &mut elsewhere.contents else { panic!("a training run") };
    run.origin.machine.threads = Some(64);
    assert_eq!(parts(&[a, elsewhere]), 2);
}

#[test]
fn no_record_and_an_empty_record_are_pages() {
    assert!(page(&[]).ends_with("</html>\n"));
    let empty = read("empty.json", r#"{"schema": "regard/bench/1", "machine": {}, "results": []}"#);
    assert!(page(&[empty]).contains("Nothing was measured."));
}
