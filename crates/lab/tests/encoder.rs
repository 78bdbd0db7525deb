//! Models that start from a checkpoint: learning, freezing, going on, distilling, and what is refused.

mod common;
mod small;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use common::repository;
use regard::{Pass, Tally};
use regard_lab::Error;
use regard_lab::batch::Batch;
use regard_lab::compare::{Compared, Comparison, Watch, agreements, fitting, swapped};
use regard_lab::draw::Stream;
use regard_lab::experiment::Experiment;
use regard_lab::model::{Mixing, Model, ModelConfig};
use regard_lab::section::Section;
use regard_lab::task::{Example, Facts, Input, Inputs, Metric, Split, Target, Targets, Task};
use regard_lab::train::{Event, Line, Parents, Run, Training, load_kept};
use serde_json::{Value, json};
use small::Echo;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn quiet(_: Event) {}

fn checkpoint(name: &str) -> PathBuf {
    repository().join("golden/models").join(name)
}

/// Whether token 7 occurs between the special tokens, in the vocabulary of the small checkpoints.
struct Holds(Facts);

impl Holds {
    fn new() -> Self {
        Holds(Facts {
            name: "holds",
            inputs: Inputs::Tokens { vocabulary: 17 },
            targets: Targets::Classes(2),
            metric: Metric::Accuracy,
            causal: false,
            longest: 16,
            sizes: [Some(256), Some(64), Some(64)],
            balance: Vec::new(),
            floor: None,
            fingerprint: "holds".into(),
        })
    }
}

impl Task for Holds {
    fn facts(&self) -> &Facts {
        &self.0
    }

    fn example(&self, split: Split, index: u64) -> Result<Example, Error> {
        let stream = Stream::of(&[split as u64, index]);
        let length = 4 + stream.bits(1000) % 10;
        let mut tokens: Vec<u32> = (0..length).map(|at| 8 + (stream.bits(at) % 9) as u32).collect();
        let class = (stream.bits(2000) % 2) as u32;
        if class == 1 {
            let place = stream.bits(3000) as usize % tokens.len();
            tokens[place] = 7;
        }
        let tokens = [&[2], &tokens[..], &[3]].concat();
        Ok(Example { input: Input::Tokens(tokens), target: Target::Class(class) })
    }
}

fn section(name: &str, value: Value) -> Section {
    let Value::Object(values) = value else { panic!("{name} needs keys and values") };
    Section::new(name, values)
}

fn run(model: Value, mixing: Value, train: Value) -> Run {
    Run {
        model: ModelConfig::read(section("model", model)).unwrap(),
        mixing: Mixing::read("attention", &mixing).unwrap(),
        training: Training::read(section("train", train)).unwrap(),
    }
}

fn pretrained(train: &str) -> Value {
    json!({"from": checkpoint("bert"), "train": train})
}

fn steps(steps: u64) -> Value {
    json!({"batch": 16, "steps": steps, "rate": 3e-3, "warm_up": 10, "weight_decay": 0.0, "evaluate_every": 100})
}

/// Bits of every parameter in order.
#[derive(Default)]
struct Bits(Vec<Vec<u32>>);

impl ModuleVisitor for Bits {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push(param.val().into_data().iter::<f32>().map(f32::to_bits).collect());
    }
}

fn bits(module: &impl Module) -> Vec<Vec<u32>> {
    let mut bits = Bits::default();
    module.visit(&mut bits);
    bits.0
}

fn fresh(run: &Run, device: &Device) -> Model {
    Model::new(&run.model, &run.mixing, Holds::new().facts(), run.training.seed, device).unwrap()
}

#[test]
fn a_checkpoint_is_tuned_to_a_task() {
    let run = run(pretrained("all"), json!("exact"), steps(200));
    let outcome = run.train(&Holds::new(), None, &mut quiet).unwrap();
    assert!(outcome.test.quality > 0.95, "{}", outcome.test.quality);
    assert_eq!(outcome.test.kept, [1.0, 1.0]);
    let before = fresh(&run, &Device::flex());
    let moved = bits(&before).iter().zip(bits(&outcome.model)).filter(|(before, after)| *before != after).count();
    assert_eq!(moved, bits(&before).len(), "every parameter learns");
}

#[test]
fn tokens_leave_a_checkpoint_while_it_is_tuned() {
    let mixing = json!({"reduce": {"reducer": "prune", "keep": 0.7}});
    let outcome = run(pretrained("all"), mixing, steps(150)).train(&Holds::new(), None, &mut quiet).unwrap();
    assert!(outcome.test.quality > 0.8, "{}", outcome.test.quality);
    assert!(outcome.test.kept[0] < 0.85 && outcome.test.kept[1] < outcome.test.kept[0], "{:?}", outcome.test.kept);
}

#[test]
fn a_frozen_encoder_keeps_its_bits_and_costs_no_gradient() {
    let [all, new] = ["all", "new"].map(|train| run(pretrained(train), json!("exact"), steps(60)));
    let outcome = new.train(&Holds::new(), None, &mut quiet).unwrap();
    let before = fresh(&new, &Device::flex());
    let encoder = |model: &Model| bits(model.encoder.as_ref().unwrap());
    assert_eq!(encoder(&before), encoder(&outcome.model));
    assert_ne!(bits(&before.head), bits(&outcome.model.head));
    assert_eq!(outcome.parameters, 24 + 24 + 24 * 2 + 2, "a norm and a head");

    let task = Holds::new();
    let examples = (0..16).map(|at| task.example(Split::Train, at).unwrap()).collect();
    let batch = Batch::pack(examples, task.facts());
    let gradients = |run: &Run| {
        let device = Device::flex().autodiff();
        let model = fresh(run, &device);
        let answers = model.answers(&batch, Pass { training: true, seed: 0, step: 0 }, &device).unwrap();
        let loss = answers.loss(&batch.asked, 0.0).unwrap();
        let before = Tally::read();
        loss.backward();
        (Tally::read() - before).gradients
    };
    // Those of the loss, of the head and of the norm, none of which passes one on to the encoder.
    assert_eq!(gradients(&new), 1 + 3 + 2);
    assert!(gradients(&all) > 30, "{}", gradients(&all));
}

/// What a second run repeats: everything but speed.
fn repeatable(lines: &[Line]) -> Vec<Line> {
    lines.iter().map(|line| Line { tokens_per_s: None, ..line.clone() }).collect()
}

/// Trains in a folder; ends abruptly at some steps, and goes on.
fn interrupted(run: &Run, teacher: Option<&Model>, folder: &Path, stops: &[u64]) -> (Vec<Line>, Vec<Vec<u32>>) {
    let parents = Parents { teacher, start: None };
    for &stop in stops {
        let ended = catch_unwind(AssertUnwindSafe(|| {
            run.train_from(parents, &Holds::new(), Some(folder), &mut |event| {
                if matches!(event, Event::Step { step, .. } if step == stop) {
                    panic!("stopped on purpose");
                }
            })
        }));
        assert!(ended.is_err(), "it was to stop at {stop}");
    }
    let outcome = run.train_from(parents, &Holds::new(), Some(folder), &mut quiet).unwrap();
    (repeatable(&outcome.lines), bits(&outcome.model))
}

#[test]
fn a_tuned_checkpoint_goes_on_to_the_same_bits() {
    let train = json!({"batch": 8, "steps": 24, "rate": 1e-3, "warm_up": 5, "evaluate_every": 6, "evaluate_examples": 16, "log_every": 1,
        "checkpoint_every": 4, "clip": 1.0});
    let mut distilled = train.clone();
    distilled["distil"] = json!({"weight": 0.5, "temperature": 2});
    let teacher = fresh(&run(pretrained("all"), json!("exact"), steps(1)), &Device::flex());
    for (freeze, mixing, train) in
        [("all", json!("hyper"), &train), ("new", json!("exact"), &train), ("all", json!({"reduce": "tome"}), &distilled)]
    {
        let run = run(pretrained(freeze), mixing, train.clone());
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let teacher = run.training.distil.as_ref().map(|_| &teacher);
        let whole = interrupted(&run, teacher, folders[0].path(), &[]);
        let pieces = interrupted(&run, teacher, folders[1].path(), &[1, 7, 19]);
        assert!(whole == pieces, "{freeze}, {}", run.mixing.name);
        let kept = load_kept(&run, &Holds::new(), folders[1].path()).unwrap().0;
        assert_eq!(bits(&kept), whole.1, "what is kept is what was trained");
    }
}

#[test]
fn a_teacher_joins_the_loss_as_its_definition_says() {
    let task = Holds::new();
    let batch = Batch::pack((0..4).map(|at| task.example(Split::Train, at).unwrap()).collect(), task.facts());
    let device = Device::flex();
    let [student, teacher] = [0, 1].map(|seed| {
        let model = json!({"from": checkpoint("bert"), "deviation": 0.5});
        let run = run(model, json!("exact"), json!({"seed": seed}));
        fresh(&run, &device).answers(&batch, Pass::default(), &device).unwrap()
    });
    let rows = |said: &Tensor<2>| said.clone().into_data().iter::<f64>().collect::<Vec<_>>();
    for temperature in [1.0f64, 2.0, 5.0] {
        let found = f64::from(student.divergence(teacher.said.clone(), temperature as f32).unwrap().into_scalar::<f32>());
        let share = |row: &[f64]| {
            let sum: f64 = row.iter().map(|x| (x / temperature).exp()).sum();
            row.iter().map(|x| (x / temperature).exp() / sum).collect::<Vec<_>>()
        };
        let divergence =
            |(said, taught): (&[f64], &[f64])| share(taught).iter().zip(share(said)).map(|(p, q)| p * (p / q).ln()).sum::<f64>();
        let (said, taught) = (rows(&student.said), rows(&teacher.said));
        let expected = said.chunks(2).zip(taught.chunks(2)).map(divergence).sum::<f64>() / 4.0 * temperature * temperature;
        // Logarithms of shares are rounded to f32 ahead of their difference.
        let budget = 8.0 * f64::from(f32::EPSILON) * temperature * temperature + 1e-6 * expected;
        assert!(expected > 0.01 && (found - expected).abs() < budget, "{temperature}: {found} and {expected}");
    }
    assert!(student.divergence(student.said.clone(), 2.0).unwrap().into_scalar::<f32>().abs() < 1e-6);
}

fn comparison(value: Value) -> Result<Comparison, Error> {
    Comparison::read(&mut section("", value))
}

fn trained(contest: &Comparison, folder: Option<&Path>) -> Vec<Compared> {
    let unknown = |call: &mut dyn FnMut()| {
        call();
        None
    };
    let mut watch = Watch { progress: &mut |_| (), peak: &unknown };
    contest.run(&Holds::new(), folder, &mut watch).unwrap()
}

#[test]
fn what_does_not_fit_is_refused_before_the_rest_is_trained() {
    let sizes = json!({"width": 16, "layers": 1, "heads": 2});
    let value = json!({"model": sizes, "train": {"batch": 4, "steps": 1_000_000}, "configurations": ["exact", "nats"]});
    let mut watch = Watch { progress: &mut |_| panic!("something has begun"), peak: &|_| None };
    let error = comparison(value).unwrap().run(&Holds::new(), None, &mut watch).unwrap_err().to_string();
    assert!(error.starts_with("nats: nats is causal only"), "{error}");
}

#[test]
fn others_start_as_exact_attention_and_are_measured_before_they_heal() {
    let folder = tempfile::tempdir().unwrap();
    let contest = |start: Value| {
        comparison(
            json!({"model": pretrained("all"), "train": {"batch": 16, "steps": 120, "rate": 3e-3, "warm_up": 10, "weight_decay": 0.0,
            "distil": {}, "evaluate_every": 60}, "seeds": [0, 1], "start": start,
            "configurations": [{"mechanism": "local", "window": 1}, {"mechanism": "local", "window": 100, "name": "wide"}, "exact"]}),
        )
        .unwrap()
    };
    let all = trained(&contest(json!("exact")), Some(folder.path()));
    assert_eq!(all.iter().map(|compared| compared.name.as_str()).collect::<Vec<_>>(), ["local", "wide", "exact"]);
    assert_eq!(all[2].zero_shot(), None);
    assert!(all[2].quality() > 0.9, "{}", all[2].quality());
    assert_eq!(all[1].zero_shot(), Some(all[2].quality()), "a window that sees everything is exact attention");
    assert!(all[0].zero_shot().is_some_and(|quality| quality <= all[2].quality()));
    assert!(all[0].record().runs.iter().all(|run| run.zero_shot.is_some()));
    let again = trained(&contest(json!("exact")), Some(folder.path()));
    assert!(all.iter().zip(&again).all(|(one, other)| one.runs == other.runs), "finished runs are found");
    assert!(trained(&contest(Value::Null), None).iter().all(|compared| compared.zero_shot().is_none()));
}

#[test]
fn healing_is_shorter_than_training_and_who_starts_from_scratch_does_neither() {
    let all = trained(&comparison(healed(json!({}))).unwrap(), None);
    let steps = |at: usize| (all[at].runs[0].steps, all[at].runs[0].zero_shot.is_some());
    assert_eq!([steps(0), steps(1), steps(2)], [(6, false), (2, true), (6, false)]);
    assert_eq!(all[1].runs[0].config["train"]["rate"], json!(1e-4));
    assert_eq!(all[1].runs[0].config["train"]["batch"], json!(4), "what healing does not say is that of training");
}

#[test]
fn healing_that_nobody_starts_with_is_refused() {
    let message = |over: Value| comparison(healed(over)).unwrap_err().to_string();
    assert_eq!(
        message(json!({"start": null})),
        "start: is missing: healing and from_scratch are of those that start as exact; write start: exact"
    );
    assert_eq!(
        message(json!({"from_scratch": ["locl"]})),
        "from_scratch: no configuration is named \"locl\", did you mean \"local\"?; there are exact, local, alone"
    );
    let named =
        |names: [&str; 2]| message(json!({"configurations": ["exact", {"name": names[0]}, {"name": names[1]}], "from_scratch": []}));
    assert_eq!(named(["a b", "a-b"]), "configurations: \"a-b\" has the folder a-b of another; give one a name: of other letters");
    let pairs = json!({"configurations": ["exact", "local/linear", "local~linear", "local+linear"], "from_scratch": []});
    assert!(comparison(healed(pairs)).is_ok(), "combinations have folders of their own");
    assert_eq!(message(json!({"healing": 3})), "healing: found 3, expected keys and values");
    assert!(message(json!({"healing": {"stps": 3}})).starts_with("healing.stps: unknown key, did you mean \"steps\"?"));
}

/// Exact attention, a window that starts as it, and one that does not.
fn healed(over: Value) -> Value {
    let mut whole = json!({"model": {"width": 8, "heads": 2, "layers": 1}, "train": {"batch": 4, "steps": 6, "warm_up": 2}, "start": "exact",
        "healing": {"steps": 2, "rate": 1e-4}, "from_scratch": ["alone"],
        "configurations": ["exact", {"mechanism": "local", "window": 2}, {"mechanism": "local", "window": 2, "name": "alone"}]});
    over.as_object().unwrap().iter().for_each(|(key, value)| whole[key] = value.clone());
    whole
}

/// A model of its own sizes hands down what it shares by name; gates are new.
#[test]
fn what_is_shared_is_adopted_and_what_is_new_stays() {
    let exact = small::run(json!("exact"), json!({"seed": 3}));
    let gated = small::run(json!("gated_linear"), json!({"seed": 4}));
    let device = Device::flex();
    let model = |run: &Run| Model::new(&run.model, &run.mixing, Echo::new().facts(), run.training.seed, &device).unwrap();
    let (source, before) = (model(&exact), model(&gated));
    let adopted = model(&gated).adopt(&source).unwrap();
    let (theirs, own, new) = (&source.blocks[1], &adopted.blocks[1], &before.blocks[1]);
    assert_eq!(bits(&theirs.attention.query), bits(&own.attention.query));
    assert_eq!(bits(&new.attention.gates), bits(&own.attention.gates));
    assert!(!bits(&own.attention.gates).is_empty());
    assert_eq!(bits(&source.head), bits(&adopted.head));
}

#[test]
fn comparisons_that_lack_their_source_are_refused() {
    let refusal = |value: Value| comparison(value).unwrap_err().to_string();
    let message = refusal(json!({"start": "exact", "configurations": ["local", {"reduce": "prune"}]}));
    assert_eq!(message, "configurations: exact is not among them, which the others start as or learn from; add exact");
    let message = refusal(json!({"train": {"distil": {"from": "runs/a"}}, "configurations": ["exact", "local"]}));
    assert!(message.starts_with("train.distil.from: in a comparison"), "{message}");
    assert!(refusal(json!({"start": "local", "configurations": ["exact"]})).starts_with("start: unknown variant"));
}

#[test]
fn models_and_tasks_that_do_not_fit_are_named() {
    let task = Holds::new();
    let refusal = |model: Value, mixing: Value, task: &dyn Task| {
        let run = run(model, mixing, json!({"steps": 1}));
        run.train(task, None, &mut quiet).unwrap_err().to_string()
    };
    let bert = || pretrained("all");
    let message = refusal(json!({"from": "no/such/folder"}), json!("exact"), &task);
    assert_eq!(message, "model.from: no/such/folder: not a folder; name the one that has config.json, model.safetensors, tokenizer.json");
    assert!(refusal(bert(), json!("exact"), &Echo::new()).contains("an encoder lets every token see later ones, and the task is echo"));
    assert_eq!(
        refusal(bert(), json!("vq"), &task),
        "vq: vq does not fit into an encoder: it learns codebook, which no checkpoint of an encoder has"
    );
    assert!(refusal(bert(), json!({"reduce": "delete_gate"}), &task).starts_with("delete_gate: it decides by a gate that it learns"));
    assert!(refusal(bert(), json!({"mechanism": "clustered", "penalty": 0.1}), &task).starts_with("clustered.penalty: "));
    let with = |vocabulary: usize, longest: usize| {
        let facts = Facts { inputs: Inputs::Tokens { vocabulary }, longest, ..Holds::new().0 };
        refusal(bert(), json!("exact"), &Holds(facts))
    };
    assert!(with(18, 16).starts_with("task.tokens: has 18 tokens, the model ") && with(18, 16).contains(" has 17; write tokens: {model: "));
    assert!(with(17, 21).starts_with("task.longest: 21 tokens, the model ") && with(17, 21).contains("has 20 positions"));
    assert!(
        ModelConfig::read(section("model", json!({"from": "a", "width": 3})))
            .unwrap_err()
            .to_string()
            .starts_with("model.width: unknown key")
    );
    let untaught = run(bert(), json!("exact"), json!({"steps": 1, "distil": {}})).train(&task, None, &mut quiet).unwrap_err().to_string();
    assert!(untaught.starts_with("train.distil.from: is missing"), "{untaught}");
}

/// A folder with a table of texts in the words of the small tokenizer.
fn desk() -> tempfile::TempDir {
    let rows = |count: u64, salt: u64| {
        let word = |stream: Stream, at: u64| ["the", "a", "cat", "dog"][(stream.bits(at) % 4) as usize];
        let row = |index: u64| {
            let stream = Stream::of(&[salt, index]);
            let text = (0..6).map(|at| word(stream, at)).collect::<Vec<_>>().join(" ");
            format!("{}\t{text}\n", if text.contains("cat") { "yes" } else { "no" })
        };
        format!("label\ttext\n{}", (0..count).map(row).collect::<String>())
    };
    common::folder(&[("train.tsv", rows(64, 1).as_bytes()), ("other.tsv", rows(16, 2).as_bytes())])
}

fn experiment(tokens: &str, base: &Path) -> Result<Experiment, Error> {
    let bert = checkpoint("bert");
    let value = json!({"task": {"name": "classify", "train": "train.tsv", "tokens": {"model": checkpoint(tokens)}, "longest": 16},
        "model": {"from": bert}, "train": {"batch": 8, "steps": 8, "warm_up": 1, "evaluate_every": 4, "checkpoint_every": 4}});
    Experiment::read(section("", value), base)
}

#[test]
fn a_task_with_the_tokens_of_another_model_is_refused() {
    let desk = desk();
    experiment("bert", desk.path()).unwrap();
    let message = experiment("roberta", desk.path()).err().unwrap().to_string();
    assert!(message.starts_with("task.tokens: the tokenizer of ") && message.contains("roberta is not that of the model "), "{message}");
    let bytes = json!({"task": {"name": "classify", "train": "train.tsv"}, "model": {"from": checkpoint("bert")}});
    let message = Experiment::read(section("", bytes), desk.path()).err().unwrap().to_string();
    assert!(message.contains("reads tokens of its own; write tokens: {model: "), "{message}");
}

#[test]
fn a_finished_run_is_measured_with_every_mechanism_and_teaches_others() {
    let desk = desk();
    let folder = desk.path().join("run");
    let mut experiment = experiment("bert", desk.path()).unwrap();
    experiment.keep(&folder).unwrap();
    let outcome = experiment.train(Some(&folder), &mut quiet).unwrap();
    let mixings = fitting(experiment.opened.task.facts());
    let names: Vec<&str> = mixings.iter().map(|mixing| mixing.name.as_str()).collect();
    assert_eq!(names[0], "exact");
    assert!(["local", "clustered", "hyper", "linear", "prune", "tome", "pitome"].iter().all(|name| names.contains(name)), "{names:?}");
    assert!(!["vq", "nats", "gated_linear", "delete_gate"].iter().any(|name| names.contains(name)), "{names:?}");
    let again = Experiment::reopen(&folder).unwrap();
    let all = swapped(&again, &folder, &mixings, &mut |_| ()).unwrap();
    assert_eq!(all[0].runs[0].quality, outcome.test.quality);
    assert_eq!(all[0].runs[0].scores, outcome.test.scores);
    assert!(all[1..].iter().all(|compared| compared.difference.is_some()));
    assert!(all.iter().all(|compared| compared.inference[0].tokens_per_s.is_some_and(|rate| rate > 0.0)));
    let other = Experiment::reopen_with_test(&folder, &desk.path().join("other.tsv")).unwrap();
    assert_eq!(swapped(&other, &folder, &mixings[..1], &mut |_| ()).unwrap()[0].runs[0].scores.len(), 16);
    let unfit = Mixing::named("gated_linear").unwrap();
    assert!(swapped(&again, &folder, &[unfit], &mut |_| ()).is_err());

    let distil = json!({"steps": 4, "batch": 8, "evaluate_every": 4, "distil": {"from": "run"}});
    experiment.run.training = Training::read(section("train", distil)).unwrap();
    assert!(experiment.train(None, &mut quiet).unwrap().test.loss.is_finite());
    let message = Experiment { run: experiment.run, ..other }.train(None, &mut quiet).unwrap_err().to_string();
    assert!(message.starts_with("train.distil.from: run learned from other data"), "{message}");
}

/// Another model in the folder of the checkpoint: its width is not that of the parameters that were kept.
#[test]
fn parameters_of_another_width_are_refused_with_both() {
    let desk = tempfile::tempdir().unwrap();
    let train = json!({"batch": 8, "steps": 2, "evaluate_every": 2, "evaluate_examples": 8});
    let own = |width: usize| run(json!({"width": width, "layers": 2, "heads": 2}), json!("exact"), train.clone());
    own(24).train(&Holds::new(), Some(desk.path()), &mut quiet).unwrap();
    let message = load_kept(&own(32), &Holds::new(), desk.path()).map(drop).unwrap_err().to_string();
    assert!(message.contains("24") && message.contains("32"), "{message}");
}

#[test]
fn vectors_of_an_encoder_agree_with_themselves() {
    let texts = ["the cat the dog a cat", "a dog", "the the the a a cat dog dog"];
    let mixings = fitting(Holds::new().facts());
    let (all, longest) = agreements(&checkpoint("bert"), &texts, &mixings, 64).unwrap();
    assert!(longest > 8 && all.len() == mixings.len());
    for agreement in &all {
        assert_eq!(agreement.cosines.len(), 3);
        assert!(agreement.least() <= agreement.mean() && agreement.mean() <= 1.0 + 1e-6, "{}", agreement.mixing.name);
        assert_eq!(agreement.kept.len(), 2);
    }
    assert_eq!((all[0].mean(), all[0].least()), (1.0, 1.0));
    let of = |name: &str| all.iter().find(|agreement| agreement.mixing.name == name).unwrap();
    assert!((of("local").mean() - 1.0).abs() < 1e-5, "its window is wider than the texts");
    assert!(of("linear").mean() < 0.9999);
    let refusal = agreements(&checkpoint("bert"), &[], &mixings, 64).unwrap_err().to_string();
    assert_eq!(refusal, "--data: there are no texts in it");
}
