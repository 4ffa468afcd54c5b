-- How likely the model finds every answer, with its prompt and alone. `difficulty` is the ratio of
-- both losses of its text, near or above 1 where the prompt does not help to say it; `gain` is
-- about what the prompt tells of the whole answer, in nats: the difference of both losses, times all
-- tokens, those of its end among them.
SELECT id, role, n_tokens, loss, text_loss / text_loss_alone AS difficulty,
       (text_loss_alone - text_loss) * n_tokens AS gain, end_loss, worst_loss, text_loss,
       text_loss_alone, method, run_id
FROM tables.answer_loss
