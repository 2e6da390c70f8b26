"""What a wrong answer to a question costs a bank: a matrix of 77 intents and a hand-over, as CSV.

A question that goes to another intent of the right team costs a second look; another team costs a transfer and an angry
customer; a stolen card or a payment that the customer did not make must not be missed. A person costs 1 a question.
"""

from __future__ import annotations

import csv
from pathlib import Path

HAND_OVER = "hand_over"
SAME_TEAM, OTHER_TEAM, MISSED_SAME, MISSED, PERSON = 0.5, 4.0, 2.0, 15.0, 1.0
TEAMS = {
    "cards": """
        activate_my_card apple_pay_or_google_pay card_about_to_expire card_acceptance card_arrival
        card_delivery_estimate card_linking card_not_working card_swallowed contactless_not_working
        disposable_card_limits get_disposable_virtual_card get_physical_card getting_spare_card getting_virtual_card
        order_physical_card supported_cards_and_currencies virtual_card_not_working visa_or_mastercard
    """,
    "security": """
        card_payment_not_recognised cash_withdrawal_not_recognised change_pin compromised_card
        direct_debit_payment_not_recognised lost_or_stolen_card lost_or_stolen_phone passcode_forgotten pin_blocked
    """,
    "transfers": """
        balance_not_updated_after_bank_transfer beneficiary_not_allowed cancel_transfer declined_transfer
        failed_transfer pending_transfer receiving_money transfer_fee_charged transfer_into_account
        transfer_not_received_by_recipient transfer_timing
    """,
    "top-up": """
        automatic_top_up balance_not_updated_after_cheque_or_cash_deposit pending_top_up
        top_up_by_bank_transfer_charge top_up_by_card_charge top_up_by_cash_or_cheque top_up_failed top_up_limits
        top_up_reverted topping_up_by_card verify_top_up
    """,
    "identity": """
        age_limit country_support edit_personal_details terminate_account unable_to_verify_identity
        verify_my_identity verify_source_of_funds why_verify_identity
    """,
    "payments": """
        Refund_not_showing_up atm_support card_payment_fee_charged card_payment_wrong_exchange_rate
        cash_withdrawal_charge declined_card_payment declined_cash_withdrawal exchange_charge exchange_rate
        exchange_via_app extra_charge_on_statement fiat_currency_support pending_card_payment
        pending_cash_withdrawal request_refund reverted_card_payment? transaction_charged_twice
        wrong_amount_of_cash_received wrong_exchange_rate_for_cash_withdrawal
    """,
}
URGENT = {
    "card_payment_not_recognised", "cash_withdrawal_not_recognised", "compromised_card",
    "direct_debit_payment_not_recognised", "lost_or_stolen_card", "lost_or_stolen_phone",
}  # fmt: skip


def cost(right: str, answer: str, team: dict[str, str]) -> float:
    """The cost of an answer where an intent is right."""
    if answer == HAND_OVER:
        return PERSON
    if answer == right:
        return 0.0
    if team[answer] == team[right]:
        return MISSED_SAME if right in URGENT else SAME_TEAM
    return MISSED if right in URGENT else OTHER_TEAM


def write(path: Path) -> None:
    """Write the matrix: answers in the first row, right intents in the first column."""
    team = {intent: name for name, intents in TEAMS.items() for intent in intents.split()}
    answers = [*sorted(team), HAND_OVER]
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["", *answers])
        rows.writerows([right, *(cost(right, answer, team) for answer in answers)] for right in sorted(team))
