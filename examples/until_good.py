"""Ends a distillation as soon as its student is good enough: the loop's body is a hook. See docs/extending.md."""

import pidistill

teacher = pidistill.load_teacher("bundled:digits")
for step in pidistill.steps(teacher, out="runs/until-good", overrides={"train.steps": 2000, "evaluate.num": 500}):
    if step.number % 100 == 0:
        found = pidistill.evaluate(teacher, step.average(), num=500, features="digits", metrics=["frechet"])
        if found.models["student"].metrics["fd"] < 50:
            step.stop()
