//! Training as a whole, on tasks that are learned in seconds.

mod small;

use regard_core::mechanism::{Causality, Mechanism};
use regard_core::reduce::Reducer;
use regard_lab::model::{Mixing, Model, ModelConfig};
use regard_lab::task::Task;
use regard_lab::train::{Event, Line};
use serde_json::{Value, json};
use small::{Echo, Occurs, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

fn quiet(_: Event) {}

#[test]
fn a_model_learns_to_look_one_token_back() {
    let run = run(json!("exact"), json!({"batch": 32, "steps": 200, "rate": 3e-3, "warm_up": 20, "evaluate_every": 100}));
    let outcome = run.train(&Echo::new(), None, &mut quiet).unwrap();
    assert!(outcome.test.quality > 0.97, "{}", outcome.test.quality);
    assert_eq!(outcome.test.scores.len(), 64);
    assert_eq!(outcome.state.step, 200);
}

#[test]
fn a_class_is_learned_with_tokens_leaving() {
    let mixing = json!({"reduce": {"reducer": "prune", "keep": 0.5, "protect": 0}});
    let run = run(mixing, json!({"batch": 32, "steps": 150, "rate": 3e-3, "warm_up": 20, "evaluate_every": 150}));
    let outcome = run.train(&Occurs::new(), None, &mut quiet).unwrap();
    assert!(outcome.test.quality > 0.9, "{}", outcome.test.quality);
    assert!((0.5..0.56).contains(&outcome.test.kept[0]) && (0.25..0.31).contains(&outcome.test.kept[1]), "{:?}", outcome.test.kept);
}

#[test]
fn every_mechanism_of_the_list_trains() {
    for about in Mechanism::ALL {
        let train = || json!({"batch": 8, "steps": 3, "evaluate_every": 3, "evaluate_examples": 8});
        let mut tasks: Vec<Box<dyn Task>> = Vec::new();
        if about.causality != Causality::Never {
            tasks.push(Box::new(Echo::new()));
        }
        if about.causality != Causality::Required {
            tasks.push(Box::new(Occurs::new()));
        }
        for task in tasks {
            let run = run(json!(about.name), train());
            let outcome =
                run.train(&*task, None, &mut quiet).unwrap_or_else(|error| panic!("{} on {}: {error}", about.name, task.facts().name));
            assert!(outcome.test.loss.is_finite(), "{} on {}", about.name, task.facts().name);
        }
    }
}

#[test]
fn every_reducer_trains() {
    for about in Reducer::ALL {
        let mut reduce = json!({"reducer": about.name});
        if about.options.iter().any(|option| option.name == "layer") {
            reduce["layer"] = json!(0);
        }
        let run = run(json!({"reduce": reduce}), json!({"batch": 8, "steps": 3, "evaluate_every": 3, "evaluate_examples": 8}));
        let outcome = run.train(&Occurs::new(), None, &mut quiet).unwrap_or_else(|error| panic!("{}: {error}", about.name));
        assert!(outcome.test.loss.is_finite(), "{}", about.name);
    }
}

#[test]
fn patience_keeps_the_best_parameters_with_and_without_a_folder() {
    // A rate that is far too high soon makes a good model worse.
    let train = json!({"batch": 16, "steps": 60, "rate": 0.3, "warm_up": 40, "decay": "constant", "evaluate_every": 10, "patience": 4});
    let folder = tempfile::tempdir().unwrap();
    let [with, without] =
        [Some(folder.path()), None].map(|folder| run(json!("exact"), train.clone()).train(&Echo::new(), folder, &mut quiet).unwrap());
    let last = with.lines.iter().rev().find_map(|line| line.validation_quality).unwrap();
    let best = with.state.best.unwrap().0;
    assert!(best > last, "{best} and {last}: the last parameters are not the best");
    assert_eq!(with.test.scores, without.test.scores);
    assert_eq!(with.state.best, without.state.best);
}

/// Trains on [`Occurs`] and says how well, and what share of the tokens left the last layer.
fn leaves(mixing: Value, steps: u64) -> (f64, f64) {
    let run = run(mixing, json!({"batch": 32, "steps": steps, "rate": 3e-3, "warm_up": 20, "evaluate_every": steps}));
    let outcome = run.train(&Occurs::new(), None, &mut quiet).unwrap();
    (outcome.test.quality, *outcome.test.kept.last().unwrap())
}

#[test]
fn a_gate_deletes_nothing_at_first_and_learns_what_can_go() {
    let gate =
        |penalty: f64| json!({"penalty": penalty, "reduce": {"reducer": "delete_gate", "layer": 0, "target_rate": 0.6, "protect": 1}});
    assert_eq!(leaves(gate(0.0), 1).1, 1.0);
    let (quality, kept) = leaves(gate(10.0), 300);
    assert!(quality > 0.9 && (0.2..0.7).contains(&kept), "{quality} with {kept}");
}

#[test]
fn thresholds_rise_by_their_penalty() {
    let learned = |penalty: f64| json!({"penalty": penalty, "reduce": {"reducer": "prune", "rule": "learned", "threshold": 0.5}});
    let ((free, all), (_, fewer)) = (leaves(learned(0.0), 200), leaves(learned(3.0), 200));
    assert!(free > 0.9 && fewer < all - 0.1, "{free} with {all}, {fewer}");
}

#[test]
fn a_task_that_sees_everything_can_be_read_in_one_direction() {
    let train = || json!({"batch": 8, "steps": 2, "evaluate_every": 2, "evaluate_examples": 8});
    let refused = run(json!("gated_linear"), train()).train(&Occurs::new(), None, &mut quiet).unwrap_err().to_string();
    assert_eq!(
        refused,
        "gated_linear: gated_linear is causal only, and the task occurs is not; add causal: true to read it in one direction"
    );
    let outcome = run(json!({"mechanism": "gated_linear", "causal": true}), train()).train(&Occurs::new(), None, &mut quiet).unwrap();
    assert!(outcome.test.loss.is_finite());
}

/// What a second run repeats: everything but speed.
fn repeatable(lines: &[Line]) -> Vec<Line> {
    lines.iter().map(|line| Line { tokens_per_s: None, ..line.clone() }).collect()
}

/// Trains in a folder; ends abruptly at some steps, and goes on.
fn interrupted(mixing: &Value, train: &Value, folder: &Path, stops: &[u64]) -> Vec<Line> {
    let run = || run(mixing.clone(), train.clone());
    for &stop in stops {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            run().train(&Echo::new(), Some(folder), &mut |event| {
                if matches!(event, Event::Step { step, .. } if step == stop) {
                    panic!("stopped on purpose");
                }
            })
        }));
        assert!(ended.is_err(), "it was to stop at {stop}");
    }
    run().train(&Echo::new(), Some(folder), &mut quiet).unwrap().lines
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let train = json!({"batch": 8, "steps": 30, "rate": 1e-3, "warm_up": 5, "evaluate_every": 6, "evaluate_examples": 16, "log_every": 1,
        "checkpoint_every": 4, "clip": 1.0});
    for mixing in [json!("exact"), json!({"mechanism": "vq", "codebook_size": 8, "block": 8, "recent": 8}), json!("gated_linear")] {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let whole = interrupted(&mixing, &train, folders[0].path(), &[]);
        let pieces = interrupted(&mixing, &train, folders[1].path(), &[1, 7, 8, 23]);
        assert_eq!(repeatable(&whole), repeatable(&pieces), "{mixing}");
        assert_eq!(whole.iter().filter(|line| line.loss.is_some()).count(), 30);
    }
}

#[test]
fn a_step_in_parts_is_the_step() {
    let train = |accumulate: usize| json!({"batch": 16, "accumulate": accumulate, "steps": 5, "rate": 1e-3, "warm_up": 1, "evaluate_every": 5, "evaluate_examples": 16, "log_every": 1});
    let losses = |accumulate| -> Vec<f32> {
        let outcome = run(json!("exact"), train(accumulate)).train(&Echo::new(), None, &mut quiet).unwrap();
        outcome.lines.iter().filter_map(|line| line.loss).collect()
    };
    let (whole, parts) = (losses(1), losses(3));
    for (whole, parts) in whole.iter().zip(&parts) {
        assert!((whole - parts).abs() < 2e-5 * whole.abs(), "{whole} and {parts}");
    }
    assert_eq!(whole.len(), 5);
}

#[test]
fn replicas_learn_what_parts_in_turn_learn_to_the_same_bits() {
    let learned = |mixing: Value, accumulate: usize, replicas: usize| {
        let train = json!({"batch": 13, "accumulate": accumulate, "replicas": replicas, "steps": 6, "rate": 1e-3, "warm_up": 1,
            "evaluate_every": 6, "evaluate_examples": 16, "log_every": 1, "clip": 0.5});
        let outcome = run(mixing, train).train(&Echo::new(), None, &mut quiet).unwrap();
        let lines: Vec<_> = outcome.lines.iter().filter_map(|line| Some((line.loss?.to_bits(), line.gradient?.to_bits()))).collect();
        (lines, outcome.test.scores, outcome.state.tokens, outcome.state.restarts)
    };
    for mixing in [json!("exact"), json!({"mechanism": "vq", "codebook_size": 8, "block": 8, "recent": 8}), json!("nats")] {
        let turns = learned(mixing.clone(), 4, 1);
        assert_eq!(turns.0.len(), 6);
        assert_eq!(turns, learned(mixing.clone(), 1, 4), "{mixing}");
        assert_eq!(turns, learned(mixing.clone(), 2, 2), "{mixing}");
        assert_ne!(turns.0, learned(mixing, 1, 1).0, "parts are rounded otherwise, or there were none");
    }
}

#[test]
fn replicas_and_dropout_are_refused_together() {
    let mut run = run(json!("exact"), json!({"batch": 8, "replicas": 2, "steps": 1}));
    let ModelConfig::Sizes(sizes) = &mut run.model else { unreachable!() };
    sizes.dropout = 0.1;
    let error = run.train(&Echo::new(), None, &mut quiet).unwrap_err().to_string();
    assert!(error.starts_with("train.replicas: dropout draws"), "{error}");
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_names_the_last_good_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let train =
        json!({"batch": 8, "steps": 50, "rate": 1e30, "warm_up": 12, "evaluate_every": 50, "checkpoint_every": 1, "weight_decay": 0.0});
    let error = run(json!("exact"), train).train(&Echo::new(), Some(folder.path()), &mut quiet).unwrap_err().to_string();
    assert!(error.contains("the last good checkpoint is") && error.contains("step-0000000"), "{error}");
}

#[test]
fn a_folder_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let train =
        |rate: f64| json!({"batch": 8, "steps": 4, "rate": rate, "evaluate_every": 4, "checkpoint_every": 2, "evaluate_examples": 8});
    run(json!("exact"), train(1e-3)).train(&Echo::new(), Some(folder.path()), &mut quiet).unwrap();
    let error = run(json!("exact"), train(2e-3)).train(&Echo::new(), Some(folder.path()), &mut quiet).unwrap_err().to_string();
    assert!(error.contains("this is a run of another configuration"), "{error}");
}

#[test]
fn what_configurations_share_starts_alike() {
    let device = burn::tensor::Device::flex();
    let mut config = run(json!("exact"), json!({})).model;
    let ModelConfig::Sizes(sizes) = &mut config else { panic!("it is from scratch") };
    assert_eq!(sizes.deviation, 1.0 / 32f64.sqrt());
    sizes.deviation = 0.02;
    let model = |name: &str, seed| Model::new(&config, &Mixing::named(name).unwrap(), Echo::new().facts(), seed, &device).unwrap();
    let values = |model: &Model| -> Vec<f32> { model.blocks[1].attention.query.weight.val().into_data().try_to_vec().unwrap() };
    let (exact, gated, other) = (model("exact", 0), model("gated_linear", 0), model("exact", 1));
    assert_eq!(values(&exact), values(&gated));
    assert_ne!(values(&exact), values(&other));
    let deviation = |values: &[f32]| (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt();
    assert!((deviation(&values(&exact)) - 0.02).abs() < 0.001);
    let down: Vec<f32> = exact.blocks[0].feed.as_ref().unwrap().down.weight.val().into_data().try_to_vec().unwrap();
    assert!((deviation(&down) - 0.01).abs() < 0.0005, "a branch ends smaller by the root of 4: {}", deviation(&down));
}

#[test]
fn tasks_and_mechanisms_that_do_not_fit_are_named() {
    let refusal = |mixing: Value, task: &dyn Task| run(mixing, json!({"steps": 1})).train(task, None, &mut quiet).unwrap_err().to_string();
    assert_eq!(
        refusal(json!("nats"), &Occurs::new()),
        "nats: nats is causal only, and the task occurs is not; add causal: true to read it in one direction"
    );
    let pruned = refusal(json!({"reduce": "prune"}), &Echo::new());
    assert_eq!(pruned, "prune: a reducer removes tokens, and the task echo asks for an answer at each");
}
