-- How likely the model finds each answer of a pair, as `answer_losses` tells it of completions.
SELECT id, side, role, n_tokens, loss, text_loss / text_loss_alone AS difficulty,
       (text_loss_alone - text_loss) * n_tokens AS gain, end_loss, worst_loss, text_loss,
       text_loss_alone, method, run_id
FROM tables.answer_side
