"""A student that is a denoiser can teach: the next one of progressive distillation, or one that learns its pairs."""

from __future__ import annotations

from pidistill.core.errors import PidistillError
from pidistill.models.denoiser import Preconditioned
from pidistill.models.labels import count_labels
from pidistill.models.student import Student


def make_teacher(student: Student) -> Preconditioned:
    """Make a teacher of a student's network, which is not copied. Raises PidistillError if it is no denoiser."""
    if student.form != "denoiser":
        raise PidistillError(f"a student of the form {student.form} cannot teach; one of the form denoiser can")
    facts = {name: value for name, value in student.facts().items() if name not in ("shape", "num_classes")}
    teacher = Preconditioned(student.net, student.shape, count_labels(student.num_classes, student.null_label),
                             preconditioning=student.preconditioning.spec, net_spec=student.net_spec,
                             null_label=student.null_label, **facts)
    teacher.decoder = student.decoder
    return teacher.eval().requires_grad_(False)
