from tests.workers.training.trainables import RUN, Line, make_line
from workers.finetuning import full
from workers.model_contract import Trained

SHORT = full.FullParameters(steps=20, learning_rate=0.05, batch_size=4)


def run(parameters: full.FullParameters = SHORT) -> tuple[Line, Trained]:
    module, trainable = make_line()
    return module, full.train.train(trainable, parameters, RUN)


def test_defaults_are_the_recipe() -> None:
    assert full.FullParameters().model_dump() == {
        "steps": 75,
        "batch_size": 16,
        "optimizer": "adamw",
        "learning_rate": 5e-5,
        "schedule": "cosine",
        "warmup_fraction": 0.1,
        "weight_decay": 0.01,
        "momentum": 0.9,
        "max_gradient_norm": 1.0,
        "validate_every": None,
        "early_stopping_patience": None,
        "keep": "last",
        "freeze_embeddings": True,
        "freeze_head": False,
    }


def test_embeddings_stay_and_what_learned_is_counted() -> None:
    module, trained = run()
    assert trained.n_parameters == 1
    assert trained.adapter is None
    assert module.weight.item() != 0.0
    assert module.embedding.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert module.unused.item() == 7.0


def test_embeddings_learn_when_asked() -> None:
    module, trained = run(SHORT.model_copy(update={"freeze_embeddings": False}))
    assert trained.n_parameters == 5
    assert module.embedding.tolist() != [1.0, 2.0, 3.0, 4.0]
